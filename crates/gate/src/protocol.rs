//! What an agent and its gate say to each other: one JSON object a line, on a unix socket in a
//! directory that only the owner enters.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::identity::Trust;
use crate::table::Entry;

/// The socket in a gate's directory.
pub(crate) const SOCKET: &str = "gate.sock";

/// What a gate is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub(crate) enum Ask {
    /// Who are you, and what do you serve?
    Hello,
    /// Believe these.
    Trust { trust: Trust },
    /// Serve this instance, or give it another certificate.
    Put { entry: Box<Entry> },
    /// Serve this instance no more.
    Remove { name: String },
    /// Hand over the socket you listen on. It comes with the answer.
    Listener,
    /// Another one takes the connections from now on; end when yours have.
    Drain,
    /// Never answered: the end of the connection is yours.
    Watch,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(crate) enum Answer {
    Hello(Hello),
    Done,
    Refused { reason: String },
}

/// Who a gate is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) version: String,
    pub(crate) listen: SocketAddr,
    pub(crate) pid: u32,
    /// Names, and until when each may be believed.
    pub(crate) held: BTreeMap<String, u64>,
    pub(crate) connections: usize,
}

/// A path in `dir` that is short enough for a socket as long as the file lives.
pub(crate) fn short(dir: &Path, name: &str) -> io::Result<(PathBuf, File)> {
    let open = File::open(dir)?;
    Ok((PathBuf::from(format!("/proc/self/fd/{}/{name}", open.as_raw_fd())), open))
}
