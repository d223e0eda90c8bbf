//! Images made from unpacked layers, without a registry.
//!
//! An image is sent to the daemon the way `docker load` sends one: a tar with the tar of every
//! layer in it. Whiteouts are plain files in an unpacked layer, as they are in a layer's tar, so a
//! layer is packed as it lies on disk. Sizes and digests must be told before the contents; they are
//! found by packing once into nothing, and kept for the next image with the same layer.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

use super::client::{Body, Client, escaped};
use crate::archive;
use crate::error::{Context as _, DriverError, Result};
use crate::shim::write_whole;

/// How much of a digest names an image.
const NAME_CHARACTERS: usize = 40;
const BLOCK_BYTES: u64 = 512;
/// The two empty blocks that end a tar.
const END: [u8; 1024] = [0; 1024];

/// The images of one driver.
#[derive(Debug)]
pub(super) struct Images {
    /// Where a file for each image tells when it was used last, and one for each layer its digest.
    dir: PathBuf,
    /// What their names in Docker begin with.
    prefix: String,
    /// How many are kept that no container uses.
    unused: usize,
}

/// The file that is locked exclusively while images come or go, and shared while one is taken: also
/// by another agent that has just been started in the same directory.
const LOCK: &str = ".lock";

/// What the daemon must know of a layer before it comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Layer {
    bytes: u64,
    digest: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
}

impl Images {
    pub(super) fn open(base: &Path, owner: &str, unused: usize) -> io::Result<Self> {
        let dir = base.join(".images");
        fs::create_dir_all(&dir)?;
        let prefix = format!("longshore/{owner}");
        Ok(Self { dir, prefix, unused })
    }

    /// Locks the images until the result is dropped; waits as long as that takes.
    fn lock(&self, how: FlockOperation) -> Result<File> {
        let lock = || {
            let file = File::create(self.dir.join(LOCK))?;
            flock(&file, how)?;
            Ok::<_, io::Error>(file)
        };
        lock().context(|| format!("lock {}", self.dir.display()))
    }

    /// Calls `then` with the name of the image of these layers, which is made when it is missing
    /// and stays at least until `then` is done.
    pub(super) fn with<T>(
        &self,
        client: &Client,
        layers: &[PathBuf],
        then: impl FnOnce(&str) -> Result<T>,
    ) -> Result<T> {
        let identities: io::Result<Vec<String>> =
            layers.iter().map(|layer| identity(layer)).collect();
        let identities = identities.context(|| "look at the layers of an image".to_owned())?;
        let mut key = hex::encode(Sha256::digest(identities.join("\n")));
        key.truncate(NAME_CHARACTERS);
        let name = format!("{}:{key}", self.prefix);
        let note = || {
            let used = self.dir.join(format!("{key}.used"));
            File::create(used).context(|| format!("note the use of image {name}"))
        };
        {
            let _together = self.lock(FlockOperation::LockShared)?;
            if is_there(client, &name)? {
                note()?;
                return then(&name);
            }
        }
        let _alone = self.lock(FlockOperation::LockExclusive)?;
        if !is_there(client, &name)? {
            let loaded = self.load(client, &name, (layers, &identities));
            loaded.context(|| format!("load image {name}"))?;
        }
        note()?;
        then(&name)
    }

    /// Removes every image of this driver.
    pub(super) fn clear(&self, client: &Client) -> Result<()> {
        self.keep(client, &BTreeSet::new(), 0)
    }

    fn load(
        &self,
        client: &Client,
        name: &str,
        (layers, identities): (&[PathBuf], &[String]),
    ) -> io::Result<()> {
        let known: io::Result<Vec<Layer>> = layers
            .iter()
            .zip(identities)
            .map(|(layer, identity)| self.layer(layer, identity))
            .collect();
        let known = known?;
        let (config, manifest) = describe(name, &known)?;
        let config_name = format!("{}.json", hex::encode(Sha256::digest(&config)));
        let small = [("manifest.json", &manifest), (config_name.as_str(), &config)];
        let sizes = known.iter().map(|layer| layer.bytes);
        let sizes = sizes.chain(small.iter().map(|(_, text)| text.len() as u64));
        let total: u64 =
            sizes.map(|bytes| BLOCK_BYTES + padded(bytes)).sum::<u64>() + END.len() as u64;
        let write = |out: &mut dyn Write| {
            for (at, (layer, path)) in known.iter().zip(layers).enumerate() {
                entry(out, &layer_name(at), layer.bytes)?;
                let packed = pack(path, &mut *out)?;
                if packed != *layer {
                    let path = path.display();
                    return Err(io::Error::other(format!("the layer {path} was changed")));
                }
                pad(out, layer.bytes)?;
            }
            for (name, text) in small {
                entry(out, name, text.len() as u64)?;
                out.write_all(text)?;
                pad(out, text.len() as u64)?;
            }
            out.write_all(&END)
        };
        let said = client.send("POST", "/images/load?quiet=1", &Body::Tar(total, &write))?;
        check_loaded(&said)
    }

    /// What is known of a layer, found out if nothing is.
    fn layer(&self, path: &Path, identity: &str) -> io::Result<Layer> {
        let name = format!("{}.layer", hex::encode(Sha256::digest(identity)));
        let kept = fs::read(self.dir.join(&name)).ok();
        if let Some(layer) = kept.and_then(|text| serde_json::from_slice(&text).ok()) {
            return Ok(layer);
        }
        let layer = pack(path, &mut io::sink())?;
        write_whole(&self.dir, &name, &layer)?;
        Ok(layer)
    }

    /// Removes images no container uses, except the few that were used last.
    pub(super) fn tidy(&self, client: &Client, in_use: &BTreeSet<String>) -> Result<()> {
        self.keep(client, in_use, self.unused)
    }

    fn keep(&self, client: &Client, in_use: &BTreeSet<String>, most: usize) -> Result<()> {
        let _alone = self.lock(FlockOperation::LockExclusive)?;
        let tidy = || {
            let filter = escaped(&json!({ "reference": [&self.prefix] }).to_string());
            let images: Vec<Listed> = client.get(&format!("/images/json?filters={filter}"))?;
            let names = images.into_iter().flat_map(|image| image.repo_tags.unwrap_or_default());
            let mut unused: BTreeMap<(SystemTime, String), PathBuf> = BTreeMap::new();
            for name in names.filter(|name| !in_use.contains(name)) {
                let Some(key) = name.strip_prefix(&format!("{}:", self.prefix)) else { continue };
                let used = self.dir.join(format!("{key}.used"));
                let at = fs::metadata(&used).and_then(|file| file.modified());
                unused.insert((at.unwrap_or(SystemTime::UNIX_EPOCH), name.clone()), used);
            }
            let superfluous = unused.len().saturating_sub(most);
            for ((_, name), used) in unused.into_iter().take(superfluous) {
                match client.delete(&format!("/images/{}", escaped(&name))) {
                    Err(refusal) if refusal.is_conflict() => continue,
                    Err(refusal) if !refusal.is_missing() => return Err(refusal.into()),
                    Ok(()) | Err(_) => {}
                }
                drop(fs::remove_file(used));
            }
            Ok::<_, io::Error>(())
        };
        tidy().context(|| "remove images nobody uses".to_owned())
    }
}

fn is_there(client: &Client, name: &str) -> Result<bool> {
    match client.get::<Value>(&format!("/images/{}/json", escaped(name))) {
        Ok(_) => Ok(true),
        Err(refusal) if refusal.is_missing() => Ok(false),
        Err(refusal) => Err(refusal).context(|| format!("look for image {name}")),
    }
}

/// Tells a directory with a layer from every other, and from what it was before it was made anew.
fn identity(layer: &Path) -> io::Result<String> {
    let path = layer.canonicalize()?;
    let found = fs::metadata(&path)?;
    if !found.is_dir() {
        return Err(io::Error::other(format!("{} is no directory", path.display())));
    }
    let (seconds, nanos) = (found.mtime(), found.mtime_nsec());
    let (device, number, path) = (found.dev(), found.ino(), path.display());
    Ok(format!("{device} {number} {seconds}.{nanos} {path}"))
}

/// Configuration and manifest of an image.
fn describe(name: &str, layers: &[Layer]) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let digests: Vec<String> =
        layers.iter().map(|layer| format!("sha256:{}", layer.digest)).collect();
    let history: Vec<Value> = layers.iter().map(|_| json!({ "created_by": "longshore" })).collect();
    let config = serde_json::to_vec(&json!({
        "architecture": architecture(),
        "os": "linux",
        // The name takes part, so that images with the same layers are not one.
        "config": { "Labels": { "longshore.image": name } },
        "rootfs": { "type": "layers", "diff_ids": digests },
        "history": history,
    }))?;
    let files: Vec<String> = (0..layers.len()).map(layer_name).collect();
    let manifest = serde_json::to_vec(&json!([{
        "Config": format!("{}.json", hex::encode(Sha256::digest(&config))),
        "RepoTags": [name],
        "Layers": files,
    }]))?;
    Ok((config, manifest))
}

fn layer_name(at: usize) -> String {
    format!("layer{at}.tar")
}

/// This machine in the words of images.
const fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "arm64"
    } else if cfg!(target_arch = "x86_64") {
        "amd64"
    } else {
        std::env::consts::ARCH
    }
}

/// The daemon answers well in any case, and says in its last words how it went.
fn check_loaded(said: &[u8]) -> io::Result<()> {
    #[derive(Deserialize)]
    struct Said {
        #[serde(default)]
        error: Option<String>,
    }
    for said in serde_json::Deserializer::from_slice(said).into_iter::<Said>() {
        if let Some(error) = said?.error {
            return Err(io::Error::other(error));
        }
    }
    Ok(())
}

/// Packs a layer and tells what was packed.
fn pack(path: &Path, out: &mut dyn Write) -> io::Result<Layer> {
    let mut measured = Measured { out, bytes: 0, digest: Sha256::new() };
    let packed =
        archive::open_root(path).and_then(|root| archive::pack(&mut measured, root.as_fd(), "/"));
    packed.map_err(|error| match error {
        DriverError::Io { source, .. } => source,
        other => io::Error::other(other.to_string()),
    })?;
    Ok(Layer { bytes: measured.bytes, digest: hex::encode(measured.digest.finalize()) })
}

/// Counts and digests what passes.
struct Measured<'a> {
    out: &'a mut dyn Write,
    bytes: u64,
    digest: Sha256,
}

impl Write for Measured<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes += written as u64;
        self.digest.update(bytes.get(..written).unwrap_or_default());
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn entry(out: &mut dyn Write, name: &str, bytes: u64) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_path(name)?;
    header.set_entry_type(EntryType::Regular);
    header.set_size(bytes);
    header.set_mode(0o644);
    header.set_cksum();
    out.write_all(header.as_bytes())
}

const fn padded(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK_BYTES)
}

fn pad(out: &mut dyn Write, bytes: u64) -> io::Result<()> {
    let missing = padded(bytes) - bytes;
    out.write_all(vec![0; usize::try_from(missing).map_err(io::Error::other)?].as_slice())
}
