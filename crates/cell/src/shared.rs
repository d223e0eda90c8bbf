//! What everything in one agent uses.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::Client;
use drivers::{Ability, Network, Publish};
use runtime::{Random, Tasks};
use tokio::sync::Semaphore;

use crate::actor::Actor;
use crate::caches::Caches;
use crate::error::CellError;
use crate::identity::Identities;
use crate::image::Images;
use crate::layers::Layers;
use crate::limits::{
    MAX_CREATES, MAX_DOWNLOADS, MAX_FETCHES, MAX_SENDS, MAX_UPLOADS, OWN_NETWORK_PORT,
};
use crate::link::{Fence, Link};
use crate::options::Options;
use crate::ports::{Port, Ports};
use crate::space::{DiskUse, Space};
use crate::turns::Turns;
use crate::volumes::Volumes;
use crate::web::{Guard, Web};
use crate::working::Working;

/// What everything in one agent uses.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) drivers: Working,
    pub(crate) client: Client,
    pub(crate) identities: Identities,
    pub(crate) tasks: Tasks,
    pub(crate) link: Link,
    pub(crate) fence: Fence,
    pub(crate) ports: Ports,
    pub(crate) images: Images,
    pub(crate) caches: Caches,
    pub(crate) volumes: Volumes,
    pub(crate) web: Arc<Web>,
    pub(crate) space: Space,
    /// Emptied when the agent starts.
    spool: PathBuf,
    pub(crate) downloads: Turns,
    pub(crate) fetches: Turns,
    pub(crate) uploads: Turns,
    pub(crate) sends: Turns,
    pub(crate) creates: Semaphore,
}

/// How an instance is reached.
#[derive(Debug)]
pub(crate) struct Place {
    /// By this cell.
    pub(crate) address: SocketAddr,
    /// By routers.
    pub(crate) published: SocketAddr,
    /// Kept as long as the instance is there.
    _port: Port,
}

impl Shared {
    pub(crate) fn new(
        options: Options,
        (client, identities): (Client, Identities),
        link: Link,
        tasks: Tasks,
    ) -> Result<Self, CellError> {
        let disk = options.disk_use.unwrap_or_else(|| DiskUse::of_disk(&options.dir));
        let space = Space::new(&options.dir, disk.reserve);
        let layers = options.dir.join("layers");
        let opened = Layers::open(&layers, (disk.layers, space.clone()), tasks.clone());
        let opened = opened.map_err(|source| CellError::Data { path: layers, source })?;
        let caches = options.dir.join("caches");
        let kept = Caches::open(&caches, (disk, space.clone()), tasks.clone());
        let kept = kept.map_err(|source| CellError::Data { path: caches, source })?;
        let spool = options.dir.join("spool");
        empty(&spool).map_err(|source| CellError::Data { path: spool.clone(), source })?;
        let guard = Guard::new(options.allowed_networks.clone());
        let downloads = Arc::new(Semaphore::new(MAX_DOWNLOADS));
        let turns = |most| Turns::new(Arc::new(Semaphore::new(most)));
        let drivers = Working::open(&options, &tasks)?;
        Ok(Self {
            images: Images::new(client.clone(), opened, Arc::clone(&downloads)),
            caches: kept,
            volumes: Volumes::new(options.dir.join("volumes")),
            ports: Ports::new(options.ports.clone(), &Random::system()),
            web: Arc::new(Web::new(guard, tasks.clone())),
            space,
            spool,
            fetches: turns(MAX_FETCHES),
            uploads: turns(MAX_UPLOADS),
            sends: turns(MAX_SENDS),
            creates: Semaphore::new(MAX_CREATES),
            fence: Fence::default(),
            options,
            drivers,
            client,
            identities,
            tasks,
            link,
            downloads: Turns::new(downloads),
        })
    }

    /// Where bytes wait on their way into or out of containers; made again when it is missing.
    pub(crate) fn spool(&self) -> io::Result<&Path> {
        fs::create_dir_all(&self.spool)?;
        Ok(&self.spool)
    }

    /// The address it is asked to listen on; an app that listens on all may ignore it.
    pub(crate) fn inner_host(&self, actor: &Actor) -> String {
        match actor.driver.network(&actor.handle) {
            Network::Host => self.host_address().to_string(),
            Network::Own(_) => Ipv4Addr::UNSPECIFIED.to_string(),
        }
    }

    /// Which port of the machine leads to an instance in a network of its own. Routers on this
    /// machine need none, and nor does a gate.
    pub(crate) fn publish(&self, actor: &Actor, port: &Port) -> Option<Publish> {
        let able = actor.driver.capabilities().can(Ability::Publish);
        let is_near = self.options.address.is_loopback() || self.options.gate.is_some();
        let needed = able && !is_near;
        match actor.driver.network(&actor.handle) {
            Network::Own(_) if needed => {
                Some(Publish { host: port.number, container: OWN_NETWORK_PORT })
            }
            Network::Own(_) | Network::Host => None,
        }
    }

    /// How the instance of a container that was made is reached.
    pub(crate) fn place(&self, actor: &Actor, port: Port) -> Place {
        let at = |address| SocketAddr::new(address, port.number);
        let advertised = at(self.options.address);
        let (address, reached) = match actor.driver.network(&actor.handle) {
            Network::Host => (at(self.host_address()), advertised),
            Network::Own(address) => {
                let address = SocketAddr::new(address, OWN_NETWORK_PORT);
                (address, address)
            }
        };
        let published = self.publish(actor, &port).map_or(reached, |_| advertised);
        Place { address, published, _port: port }
    }

    /// Where instances listen that share the machine's network. Behind a gate nobody else need
    /// reach them.
    fn host_address(&self) -> IpAddr {
        match self.options.gate {
            Some(_) => Ipv4Addr::LOCALHOST.into(),
            None => self.options.address,
        }
    }
}

/// The port an instance listens on where it is.
pub(crate) fn inner_port(actor: &Actor, port: &Port) -> u16 {
    match actor.driver.network(&actor.handle) {
        Network::Host => port.number,
        Network::Own(_) => OWN_NETWORK_PORT,
    }
}

fn empty(dir: &Path) -> io::Result<()> {
    drivers::remove_tree(dir)?;
    fs::create_dir_all(dir)
}
