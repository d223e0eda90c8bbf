//! Images: an OCI manifest in the blob store, its configuration and its layers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use api::Client;
use build::image::{Config, Manifest};
use futures_util::future::try_join_all;
use model::Digest;
use tokio::sync::Semaphore;

use crate::blob;
use crate::error::{Context as _, Failure};
use crate::layers::{Layers, Slot};
use crate::limits::{MAX_IMAGE_JSON, MAX_KNOWN_IMAGES};

/// What an image says about how it is run, and which layers it has.
#[derive(Debug)]
struct Facts {
    env: BTreeMap<String, String>,
    dir: Option<String>,
    layers: Vec<Digest>,
}

/// An image all of whose layers are on this machine as long as this lives.
#[derive(Debug, Default)]
pub(crate) struct Image {
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) dir: Option<String>,
    /// From the lowest to the highest.
    pub(crate) layers: Vec<(Digest, Arc<Slot>)>,
}

impl Image {
    /// Where its layers are.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.layers.iter().filter_map(|(_, layer)| layer.path().map(Path::to_owned)).collect()
    }
}

/// Gets images from the server.
#[derive(Debug)]
pub(crate) struct Images {
    client: Client,
    layers: Layers,
    downloads: Arc<Semaphore>,
    known: Mutex<BTreeMap<Digest, Arc<Facts>>>,
}

impl Images {
    pub(crate) fn new(client: Client, layers: Layers, downloads: Arc<Semaphore>) -> Self {
        Self { client, layers, downloads, known: Mutex::default() }
    }

    /// Brings an image here; only what is missing is fetched.
    pub(crate) async fn get(&self, digest: Digest) -> Result<Image, Failure> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&digest).cloned();
        let facts = match known {
            Some(facts) => facts,
            None => self.learn(digest).await?,
        };
        let layer = |digest: &Digest| self.layers.get(&self.client, *digest, &self.downloads);
        let layers = try_join_all(facts.layers.iter().map(layer)).await?;
        let layers = facts.layers.iter().copied().zip(layers).collect();
        Ok(Image { env: facts.env.clone(), dir: facts.dir.clone(), layers })
    }

    /// The layers of a container that an earlier agent made, as far as they are still here.
    pub(crate) fn held(&self, layers: &[Digest]) -> Vec<Arc<Slot>> {
        layers.iter().filter_map(|layer| self.layers.find(*layer)).collect()
    }

    async fn learn(&self, digest: Digest) -> Result<Arc<Facts>, Failure> {
        let facts = blob::retry(|| self.fetch(digest)).await?;
        let facts = Arc::new(facts);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        while known.len() >= MAX_KNOWN_IMAGES {
            known.pop_first();
        }
        known.insert(digest, Arc::clone(&facts));
        Ok(facts)
    }

    async fn fetch(&self, digest: Digest) -> Result<Facts, Failure> {
        let manifest = blob::read_whole(&self.client, digest, MAX_IMAGE_JSON).await?;
        let manifest = Manifest::parse(&manifest).map_err(Failure::new)?;
        let config = blob::read_whole(&self.client, manifest.config.digest, MAX_IMAGE_JSON)
            .await
            .context(|| "its configuration".to_owned())?;
        let config = Config::parse(&config).map_err(Failure::new)?;
        Ok(Facts {
            env: config.env(),
            dir: Some(config.run.working_dir).filter(|dir| !dir.is_empty()),
            layers: manifest.layers.iter().map(|layer| layer.digest).collect(),
        })
    }
}
