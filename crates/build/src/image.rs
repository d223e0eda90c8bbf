//! OCI images: manifest, config, layout, layers in and out of directories.

mod layer;
mod materialise;
mod store;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use model::Digest;
use serde::{Deserialize, Serialize};

pub use drivers::archive::{Limits, Summary};
pub(crate) use layer::{Blob, Tree, write_blob};
pub use layer::{Hashing, MTIME, MTIME_TEXT, TarWriter};
pub use materialise::{Sharing, materialise};
pub use store::{LayerStore, unpack};

/// The media type of a manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The media type of a config.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// The media type of a layer compressed with gzip.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// The media type of an index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Most bytes of a manifest or config.
pub const MAX_JSON: u64 = 4 << 20;
/// Most layers of an image.
pub const MAX_LAYERS: usize = 500;

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The bytes are no manifest or config, or one that is not understood.
    #[error("this is no image {what} that can be used: {reason}")]
    Format {
        /// Which document.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The bytes are not those of the digest.
    #[error("layer {wanted} is damaged: its bytes have the digest {found}")]
    Digest {
        /// What was asked for.
        wanted: Digest,
        /// What the bytes are.
        found: Digest,
    },
    /// The layer breaks a rule.
    #[error("a layer was refused: {0}")]
    Refused(#[from] drivers::DriverError),
    /// The operating system refused.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// The system's answer.
        source: io::Error,
    },
}

pub(crate) fn io_error(what: &str, path: &Path, source: impl Into<io::Error>) -> ImageError {
    ImageError::Io { context: format!("{what} {}", path.display()), source: source.into() }
}

/// Points at a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What kind of bytes.
    pub media_type: String,
    /// Which bytes.
    pub digest: Digest,
    /// How many.
    pub size: u64,
    /// More about them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// A descriptor without annotations.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.to_owned(), digest, size, annotations: BTreeMap::new() }
    }
}

/// An image: its config and its layers, bottom first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// [`MANIFEST`], or Docker's.
    #[serde(default)]
    pub media_type: String,
    /// The config.
    pub config: Descriptor,
    /// The layers.
    pub layers: Vec<Descriptor>,
}

/// How an image is run and what its layers hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Config {
    /// When it was made: always the same time, so that equal content has equal digests.
    #[serde(default)]
    pub created: Option<String>,
    /// The architecture in Go's words.
    pub architecture: String,
    /// The operating system.
    pub os: String,
    /// How to run it.
    #[serde(default, rename = "config")]
    pub run: RunConfig,
    /// Digests of the uncompressed layers.
    pub rootfs: RootFs,
    /// Where layers came from.
    #[serde(default)]
    pub history: Vec<History>,
}

/// How an image is run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    /// The user.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// `NAME=value` pairs.
    #[serde(deserialize_with = "null_is_default")]
    pub env: Vec<String>,
    /// The program.
    #[serde(deserialize_with = "null_is_default")]
    pub entrypoint: Vec<String>,
    /// Its arguments.
    #[serde(deserialize_with = "null_is_default")]
    pub cmd: Vec<String>,
    /// The working directory.
    pub working_dir: String,
    /// Labels.
    #[serde(deserialize_with = "null_is_default")]
    pub labels: BTreeMap<String, String>,
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// What the layers hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    pub r#type: String,
    /// Digests of the uncompressed layers, bottom first.
    pub diff_ids: Vec<Digest>,
}

/// Where a layer came from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct History {
    /// When it was made.
    #[serde(default)]
    pub created: Option<String>,
    /// What made it.
    #[serde(default)]
    pub created_by: Option<String>,
    /// Whether there is no layer for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

fn format_error(what: &'static str, reason: impl Into<String>) -> ImageError {
    ImageError::Format { what, reason: reason.into() }
}

impl Manifest {
    /// Reads a manifest; indexes and unknown layer kinds are refused.
    pub fn parse(bytes: &[u8]) -> Result<Self, ImageError> {
        if bytes.len() as u64 > MAX_JSON {
            return Err(format_error("manifest", "it is too large"));
        }
        let manifest: Self = serde_json::from_slice(bytes)
            .map_err(|error| format_error("manifest", error.to_string()))?;
        if manifest.layers.len() > MAX_LAYERS {
            return Err(format_error("manifest", format!("more than {MAX_LAYERS} layers")));
        }
        let known = |kind: &str| {
            matches!(kind.rsplit('.').next(), Some("tar" | "tar+gzip" | "gzip")) || kind == LAYER
        };
        match manifest.layers.iter().find(|layer| !known(&layer.media_type)) {
            Some(layer) => {
                Err(format_error("manifest", format!("a layer is `{}`", layer.media_type)))
            }
            None => Ok(manifest),
        }
    }
}

impl Config {
    /// Reads a config.
    pub fn parse(bytes: &[u8]) -> Result<Self, ImageError> {
        if bytes.len() as u64 > MAX_JSON {
            return Err(format_error("config", "it is too large"));
        }
        serde_json::from_slice(bytes).map_err(|error| format_error("config", error.to_string()))
    }

    /// Its environment as pairs.
    pub fn env(&self) -> BTreeMap<String, String> {
        let pairs = self.run.env.iter().filter_map(|pair| pair.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }
}

/// The machine's architecture in the words of image configs.
pub const fn architecture() -> &'static str {
    match std::env::consts::ARCH.as_bytes() {
        b"x86_64" => "amd64",
        b"aarch64" => "arm64",
        b"x86" => "386",
        _ => std::env::consts::ARCH,
    }
}

/// An OCI image layout directory.
#[derive(Debug, Clone)]
pub struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// Makes an empty layout in `dir`; blobs that are there stay.
    pub fn create(dir: &Path) -> io::Result<Self> {
        let layout = Self { dir: dir.to_owned() };
        std::fs::create_dir_all(layout.blobs())?;
        std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(layout)
    }

    /// The layout in `dir`.
    pub fn open(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The directory of the blobs, each named by the hex digits of its SHA-256.
    pub fn blobs(&self) -> PathBuf {
        self.dir.join("blobs/sha256")
    }

    /// The file of a blob.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    /// Adds a small blob.
    pub fn add(&self, media_type: &str, bytes: &[u8]) -> io::Result<Descriptor> {
        let digest = Digest::of(bytes);
        std::fs::write(self.blob(&digest), bytes)?;
        Ok(Descriptor::new(media_type, digest, bytes.len() as u64))
    }

    /// Writes the index that points at one manifest.
    pub fn point_at(&self, manifest: &Descriptor) -> io::Result<()> {
        let index = serde_json::json!({
            "schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest],
        });
        std::fs::write(self.dir.join("index.json"), index.to_string())
    }

    /// Reads a manifest.
    pub fn manifest(&self, digest: &Digest) -> Result<Manifest, ImageError> {
        Manifest::parse(&self.small(digest)?)
    }

    /// Reads a config.
    pub fn config(&self, digest: &Digest) -> Result<Config, ImageError> {
        Config::parse(&self.small(digest)?)
    }

    fn small(&self, wanted: &Digest) -> Result<Vec<u8>, ImageError> {
        use std::io::Read as _;
        let path = self.blob(wanted);
        let mut bytes = Vec::new();
        std::fs::File::open(&path)
            .and_then(|file| file.take(MAX_JSON + 1).read_to_end(&mut bytes))
            .map_err(|error| io_error("read", &path, error))?;
        let found = Digest::of(&bytes);
        if found == *wanted {
            Ok(bytes)
        } else {
            Err(ImageError::Digest { wanted: *wanted, found })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_read_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let layout = Layout::create(dir.path()).expect("made");
        let config = Config { os: "linux".into(), ..Config::default() };
        let config = serde_json::to_vec(&config).expect("serialises");
        let config = layout.add(CONFIG, &config).expect("added");
        let manifest = Manifest {
            schema_version: 2,
            media_type: MANIFEST.into(),
            layers: vec![Descriptor::new(LAYER, Digest::of(b""), 0)],
            config,
        };
        let bytes = serde_json::to_vec(&manifest).expect("serialises");
        let added = layout.add(MANIFEST, &bytes).expect("added");
        layout.point_at(&added).expect("written");
        let layout = Layout::open(dir.path());
        assert_eq!(layout.manifest(&added.digest).expect("read"), manifest);
        assert_eq!(layout.config(&manifest.config.digest).expect("read").os, "linux");
        std::fs::write(layout.blob(&added.digest), "{}").expect("written");
        assert!(matches!(layout.manifest(&added.digest), Err(ImageError::Digest { .. })));
    }

    #[test]
    fn docker_documents_are_understood_and_foreign_layers_are_not() {
        let digest = Digest::of(b"");
        let text = |kind: &str| {
            format!(
                r#"{{"schemaVersion":2,"config":{{"mediaType":"x","digest":"{digest}","size":1}},
                "layers":[{{"mediaType":"{kind}","digest":"{digest}","size":1}}]}}"#
            )
        };
        for (kind, fine) in [
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", true),
            ("application/vnd.oci.image.layer.v1.tar", true),
            (LAYER, true),
            ("application/vnd.oci.image.layer.v1.tar+zstd", false),
        ] {
            assert_eq!(Manifest::parse(text(kind).as_bytes()).is_ok(), fine, "{kind}");
        }
        let config = r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers",
            "diff_ids":[]},"config":{"Env":["A=b=c"],"Cmd":null}}"#;
        let config = Config::parse(config.as_bytes()).expect("reads");
        assert_eq!(config.env()["A"], "b=c");
    }
}
