//! The image of a build, as an OCI layout.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;

use model::{Digest, LAUNCHER};

use super::{BuildResult, LayerCache, RESULT_FILE, ResultBuildpack, ResultLayer, ResultProcess};
use crate::Paths;
use crate::buildpack::{AppFiles, Built, Layer, LayerTypes, note};
use crate::error::{BuildError, Context as _};
use crate::image::{
    self, Blob, Config, Descriptor, Hashing, History, Layout, MTIME_TEXT, Manifest, RootFs,
    RunConfig, TarWriter, Tree, write_blob,
};
use crate::metadata::Metadata;

const PLATFORM_API: &str = "0.14";

pub(super) fn export(
    paths: &Paths,
    built: &Built,
    metadata: &Metadata,
    cache: &mut LayerCache,
    out: &mut dyn Write,
) -> Result<BuildResult, BuildError> {
    let dir = paths.export_dir();
    let layout = Layout::create(&dir).exporting("make", &dir)?;
    let mut exporter = Exporter { paths, layout, cache, layers: Vec::new() };
    let id = &metadata.buildpacks[0].id;
    for layer in &built.layers {
        if layer.types != LayerTypes::Build {
            exporter.layer(id, layer).exporting("export a layer to", &dir)?;
        }
    }
    exporter.app(&built.app).exporting("export the app to", &dir)?;
    exporter.config(metadata)?;
    let result = exporter.finish(metadata).exporting("write", &dir)?;
    let size: u64 = result.layers.iter().map(|layer| layer.size).sum();
    let reused = result.layers.iter().filter(|layer| layer.cached).count();
    let layers = result.layers.len();
    let kib = size.div_ceil(1024);
    note(out, &format!("Image {} ({layers} layers, {reused} reused, {kib} KiB)", result.image))?;
    Ok(result)
}

struct Exporter<'a> {
    paths: &'a Paths,
    layout: Layout,
    cache: &'a mut LayerCache,
    layers: Vec<ResultLayer>,
}

type Fill<'a> = &'a dyn Fn(&mut TarWriter<&mut dyn Write>) -> io::Result<()>;

impl Exporter<'_> {
    fn push(&mut self, name: &str, blob: Blob, cached: bool) {
        let Blob { digest, size, diff_id } = blob;
        self.layers.push(ResultLayer { name: name.to_owned(), digest, size, diff_id, cached });
    }

    /// A layer of a buildpack: the blob of an earlier build if it says so.
    fn layer(&mut self, buildpack: &str, layer: &Layer) -> io::Result<()> {
        let name = format!("{buildpack}/{}", layer.name);
        let diff_id = if let Some(reused) = &layer.reused {
            let blob = self.cache.take(&reused.diff_id, &self.layout.blobs())?;
            let gone = || io::Error::other(format!("the cached layer {name} is damaged"));
            self.push(&name, blob.ok_or_else(gone)?, true);
            reused.diff_id
        } else {
            let path = format!("{}/{name}", self.paths.layers);
            let from = self.paths.root.real(&path);
            let tree = Tree { name: path.trim_start_matches('/'), from, keep: &|_| true };
            self.blob(&name, &|tar| tree.write(tar))?
        };
        if let Some(key) = layer.key.clone() {
            self.cache.remember(name, key, diff_id);
        }
        Ok(())
    }

    /// The source, without what the buildpack leaves out.
    fn app(&mut self, files: &AppFiles) -> io::Result<()> {
        let keep = |name: &str| match files {
            AppFiles::AllBut(not) => name != ".git" && !not.iter().any(|n| n == name),
            AppFiles::Only(only) => only.iter().any(|n| n == name),
        };
        let name = self.paths.workspace.clone();
        let tree = Tree {
            name: name.trim_start_matches('/'),
            from: self.paths.workspace_dir(),
            keep: &keep,
        };
        self.blob("app", &|tar| tree.write(tar)).map(|_| ())
    }

    /// What the launcher reads.
    fn config(&mut self, metadata: &Metadata) -> Result<(), BuildError> {
        let text = metadata.to_toml().map_err(|error| BuildError::Unusable(error.to_string()))?;
        let name = format!("{}/config/metadata.toml", self.paths.layers);
        let real = self.paths.root.real(&name);
        if let Some(dir) = real.parent() {
            std::fs::create_dir_all(dir).exporting("make", dir)?;
        }
        std::fs::write(&real, &text).exporting("write", &real)?;
        let name = Path::new(name.trim_start_matches('/'));
        let fill = |tar: &mut TarWriter<&mut dyn Write>| {
            let mut above: Vec<_> = name.ancestors().skip(1).collect();
            above.reverse();
            above.into_iter().filter(|p| !p.as_os_str().is_empty()).try_for_each(|p| tar.dir(p))?;
            tar.bytes(name, text.as_bytes())
        };
        self.blob("config", &fill).exporting("export", &real).map(|_| ())
    }

    /// A blob of what `fill` writes, without compressing it when the cache has it.
    fn blob(&mut self, name: &str, fill: Fill<'_>) -> io::Result<Digest> {
        if !self.cache.is_empty() {
            let mut plain = Hashing::new(io::sink());
            let mut tar = TarWriter::new(&mut plain as &mut dyn Write);
            fill(&mut tar)?;
            tar.finish()?;
            let (_, diff_id, _) = plain.finish();
            if self.cache.has(&diff_id)
                && let Some(blob) = self.cache.take(&diff_id, &self.layout.blobs())?
            {
                self.push(name, blob, true);
                return Ok(diff_id);
            }
        }
        let blob = write_blob(&self.layout.blobs(), fill)?;
        self.cache.keep(&blob, &self.layout.blobs())?;
        self.push(name, blob, false);
        Ok(blob.diff_id)
    }

    fn finish(self, metadata: &Metadata) -> io::Result<BuildResult> {
        let config = serde_json::to_vec(&self.image_config(metadata)?)?;
        let layers = self.layers.iter();
        let manifest = Manifest {
            schema_version: 2,
            media_type: image::MANIFEST.to_owned(),
            config: self.layout.add(image::CONFIG, &config)?,
            layers: layers
                .map(|layer| Descriptor::new(image::LAYER, layer.digest, layer.size))
                .collect(),
        };
        let manifest = self.layout.add(image::MANIFEST, &serde_json::to_vec(&manifest)?)?;
        self.layout.point_at(&manifest)?;
        let used: BTreeSet<_> = self.layers.iter().map(|layer| layer.diff_id).collect();
        self.cache.save(&used)?;
        let buildpack = &metadata.buildpacks[0];
        let result = BuildResult {
            image: manifest.digest,
            processes: metadata
                .processes
                .iter()
                .map(|process| ResultProcess {
                    name: process.r#type.clone(),
                    argv: vec![LAUNCHER.to_owned(), process.r#type.clone()],
                    dir: process.working_dir.clone(),
                    default: process.r#type == metadata.buildpack_default_process_type,
                })
                .collect(),
            buildpack: ResultBuildpack {
                id: buildpack.id.clone(),
                version: buildpack.version.clone(),
            },
            cached: self.layers.iter().all(|layer| layer.cached),
            layers: self.layers,
        };
        let file = self.paths.export_dir().join(RESULT_FILE);
        std::fs::write(file, serde_json::to_vec(&result)?)?;
        Ok(result)
    }

    fn image_config(&self, metadata: &Metadata) -> io::Result<Config> {
        let mut labels = metadata.labels.clone();
        let processes: Vec<_> = metadata
            .processes
            .iter()
            .map(|process| {
                serde_json::json!({
                    "type": process.r#type, "command": process.command, "args": process.args,
                    "direct": true, "buildpackID": process.buildpack_id,
                })
            })
            .collect();
        let described = serde_json::json!({
            "buildpacks": metadata.buildpacks, "processes": processes,
        });
        labels
            .insert("io.buildpacks.build.metadata".to_owned(), serde_json::to_string(&described)?);
        let default = &metadata.buildpack_default_process_type;
        let made = Some(MTIME_TEXT.to_owned());
        Ok(Config {
            created: made.clone(),
            architecture: image::architecture().to_owned(),
            os: "linux".to_owned(),
            run: RunConfig {
                user: String::new(),
                env: vec![
                    format!("CNB_LAYERS_DIR={}", self.paths.layers),
                    format!("CNB_APP_DIR={}", self.paths.workspace),
                    format!("CNB_PLATFORM_API={PLATFORM_API}"),
                ],
                entrypoint: vec![LAUNCHER.to_owned()],
                cmd: if default.is_empty() { Vec::new() } else { vec![default.clone()] },
                working_dir: self.paths.workspace.clone(),
                labels,
            },
            rootfs: RootFs {
                r#type: "layers".to_owned(),
                diff_ids: self.layers.iter().map(|layer| layer.diff_id).collect(),
            },
            history: self
                .layers
                .iter()
                .map(|layer| History {
                    created: made.clone(),
                    created_by: Some(format!("Layer: {}", layer.name)),
                    empty_layer: false,
                })
                .collect(),
        })
    }
}
