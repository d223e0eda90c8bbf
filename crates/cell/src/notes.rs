//! What is noted with a container, so that a later agent can take over.
//!
//! Drivers keep short texts only, so a long one is noted in pieces.

use std::collections::BTreeMap;

use drivers::ProcessId;
use model::{Check, Digest, ProcessSpec, StopSignal, VolumeId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Failure;

/// Bytes of one piece; drivers keep 4 KiB.
const PIECE: usize = 4_000;
/// Pieces of all notes of one container; drivers keep 64, and some say whose it is.
const MAX_PIECES: usize = 56;
const NOTES: &str = "notes";
const HELD: &str = "held";

/// What is noted of an instance. Holds no environment: that is the container's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Notes {
    pub(crate) process: ProcessId,
    /// Its port in the network it is in.
    pub(crate) port: u16,
    /// The cell's port that leads to it; its own on a shared network.
    pub(crate) host_port: u16,
    pub(crate) dir: Option<String>,
    pub(crate) check: Option<Check>,
    pub(crate) startup: Option<Check>,
    pub(crate) readiness: Option<Check>,
    pub(crate) grace_ms: u64,
    pub(crate) stop_signal: StopSignal,
    pub(crate) pre_stop: Option<Vec<String>>,
    pub(crate) log_bytes: Option<u64>,
}

/// What a container keeps from being removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    pub(crate) layers: Vec<Digest>,
    pub(crate) caches: Vec<String>,
    /// Volumes, and whether it writes to them.
    #[serde(default)]
    pub(crate) volumes: Vec<(VolumeId, bool)>,
}

impl Notes {
    pub(crate) fn new(spec: &ProcessSpec, process: ProcessId, ports: (u16, u16)) -> Self {
        let (port, host_port) = ports;
        Self {
            process,
            port,
            host_port,
            dir: spec.dir.clone(),
            check: spec.check.clone(),
            startup: spec.startup.clone(),
            readiness: spec.readiness.clone(),
            grace_ms: spec.stop_grace_ms,
            stop_signal: spec.stop_signal,
            pre_stop: spec.pre_stop.clone(),
            log_bytes: spec.container.limits.log_bytes,
        }
    }

    pub(crate) fn properties(&self) -> Result<BTreeMap<String, String>, Failure> {
        write(NOTES, self)
    }

    pub(crate) fn from_properties(properties: &BTreeMap<String, String>) -> Option<Self> {
        read(NOTES, properties)
    }
}

impl Held {
    pub(crate) fn properties(&self) -> Result<BTreeMap<String, String>, Failure> {
        write(HELD, self)
    }

    pub(crate) fn from_properties(properties: &BTreeMap<String, String>) -> Self {
        read(HELD, properties).unwrap_or_default()
    }
}

fn write(name: &str, note: &impl Serialize) -> Result<BTreeMap<String, String>, Failure> {
    let text = serde_json::to_string(note).map_err(Failure::new)?;
    let mut rest = text.as_str();
    let mut pieces = BTreeMap::new();
    while !rest.is_empty() {
        let end = rest.floor_char_boundary(PIECE);
        let (piece, after) = rest.split_at(end);
        pieces.insert(format!("{name}.{}", pieces.len()), piece.to_owned());
        rest = after;
    }
    if pieces.len() > MAX_PIECES / 2 {
        let most = PIECE * MAX_PIECES / 2;
        return Err(Failure::new(format!("its checks and hooks have more than {most} bytes")));
    }
    Ok(pieces)
}

fn read<T: DeserializeOwned>(name: &str, properties: &BTreeMap<String, String>) -> Option<T> {
    let pieces = (0..MAX_PIECES).map_while(|number| properties.get(&format!("{name}.{number}")));
    serde_json::from_str(&pieces.map(String::as_str).collect::<String>()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_come_back_however_long() {
        let process = ProcessId::new("web").expect("a good id");
        let mut spec = ProcessSpec::new(["app"]);
        for hook in [None, Some(vec!["ä".repeat(20_000), "x".repeat(40_000)])] {
            spec.pre_stop = hook;
            let notes = Notes::new(&spec, process.clone(), (8_080, 20_001));
            let properties = notes.properties().expect("fits");
            assert!(properties.values().all(|value| value.len() <= PIECE));
            assert_eq!(Notes::from_properties(&properties), Some(notes));
        }
        spec.pre_stop = Some(vec!["x".repeat(120_000)]);
        assert!(Notes::new(&spec, process, (1, 1)).properties().is_err());
        let (layers, caches) = (vec![Digest([1; 32]); 100], vec!["deps".into()]);
        let held = Held { layers, caches, volumes: vec![(VolumeId(1), true)] };
        assert_eq!(Held::from_properties(&held.properties().expect("fits")), held);
        assert_eq!(Held::from_properties(&BTreeMap::new()), Held::default());
    }
}
