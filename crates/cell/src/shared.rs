//! What everything in one agent uses.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::Client;
use drivers::process::{Config, ProcessDriver};
use drivers::{Driver, Handle, Network};
use runtime::{Random, Tasks};
use tokio::sync::Semaphore;

use crate::caches::Caches;
use crate::error::CellError;
use crate::image::Images;
use crate::layers::Layers;
use crate::limits::{
    CACHED_BUILD_BYTES, CACHED_LAYER_BYTES, MAX_CREATES, MAX_DOWNLOADS, MAX_FETCHES, MAX_UPLOADS,
    OWN_NETWORK_PORT,
};
use crate::link::{Fence, Link};
use crate::options::Options;
use crate::ports::{Port, Ports};
use crate::web::{Guard, Web};

/// What everything in one agent uses.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) drivers: Vec<Arc<dyn Driver>>,
    pub(crate) client: Client,
    pub(crate) tasks: Tasks,
    pub(crate) link: Link,
    pub(crate) fence: Fence,
    pub(crate) ports: Ports,
    pub(crate) images: Images,
    pub(crate) caches: Caches,
    pub(crate) web: Arc<Web>,
    /// Where bytes wait on their way into or out of containers; emptied when the agent starts.
    pub(crate) spool: PathBuf,
    pub(crate) downloads: Arc<Semaphore>,
    pub(crate) fetches: Semaphore,
    pub(crate) uploads: Semaphore,
    pub(crate) creates: Semaphore,
}

/// How an instance is reached.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) address: SocketAddr,
    /// Kept as long as the instance is there.
    _port: Option<Port>,
}

impl Shared {
    pub(crate) fn new(
        options: Options,
        client: Client,
        link: Link,
        tasks: Tasks,
    ) -> Result<Self, CellError> {
        let layers = options.dir.join("layers");
        let opened = Layers::open(&layers, CACHED_LAYER_BYTES, tasks.clone());
        let opened = opened.map_err(|source| CellError::Data { path: layers, source })?;
        let caches = options.dir.join("caches");
        let kept = Caches::open(&caches, CACHED_BUILD_BYTES, tasks.clone());
        let kept = kept.map_err(|source| CellError::Data { path: caches, source })?;
        let spool = options.dir.join("spool");
        empty(&spool).map_err(|source| CellError::Data { path: spool.clone(), source })?;
        let guard = Guard::new(options.transfer_networks.clone());
        let downloads = Arc::new(Semaphore::new(MAX_DOWNLOADS));
        let drivers = usable(&options, &tasks)?;
        Ok(Self {
            images: Images::new(client.clone(), opened, Arc::clone(&downloads)),
            caches: kept,
            ports: Ports::new(options.ports.clone(), &Random::system()),
            web: Arc::new(Web::new(guard, tasks.clone())),
            spool,
            fetches: Semaphore::new(MAX_FETCHES),
            uploads: Semaphore::new(MAX_UPLOADS),
            creates: Semaphore::new(MAX_CREATES),
            fence: Fence::default(),
            options,
            drivers,
            client,
            tasks,
            link,
            downloads,
        })
    }

    /// The driver of new containers.
    pub(crate) fn driver(&self) -> &Arc<dyn Driver> {
        self.drivers.first().expect("a cell has a driver")
    }

    /// A place for a new instance; `None` when no port is free.
    pub(crate) fn place(&self, driver: &dyn Driver, handle: &Handle) -> Option<Place> {
        match driver.network(handle) {
            Network::Host => self.ports.take().map(|port| self.on_host(port)),
            Network::Own(address) => Some(own(address)),
        }
    }

    /// The place an instance has that another agent made.
    pub(crate) fn place_again(&self, driver: &dyn Driver, handle: &Handle, port: u16) -> Place {
        match driver.network(handle) {
            Network::Host => self.on_host(self.ports.keep(port)),
            Network::Own(address) => own(address),
        }
    }

    fn on_host(&self, port: Port) -> Place {
        Place { address: SocketAddr::new(self.options.address, port.number), _port: Some(port) }
    }
}

fn own(address: IpAddr) -> Place {
    Place { address: SocketAddr::new(address, OWN_NETWORK_PORT), _port: None }
}

fn empty(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    fs::create_dir_all(dir)
}

fn usable(options: &Options, tasks: &Tasks) -> Result<Vec<Arc<dyn Driver>>, CellError> {
    let mut drivers = options.drivers.clone();
    if drivers.is_empty() {
        let config = Config::new(options.dir.join("containers"));
        drivers.push(Arc::new(ProcessDriver::open(&config, tasks.clone())?));
    }
    let mut reasons = Vec::new();
    drivers.retain(|driver| {
        let capabilities = driver.capabilities();
        let reason =
            capabilities.unavailable.map(|reason| format!("{}: {reason}", capabilities.name));
        let works = reason.is_none();
        reasons.extend(reason);
        works
    });
    if drivers.is_empty() {
        return Err(CellError::NoDriver(reasons.join("; ")));
    }
    Ok(drivers)
}
