//! The component streams, generated from `proto/components.proto`.

mod generated {
    #![expect(
        missing_docs,
        unused_qualifications,
        clippy::pedantic,
        clippy::allow_attributes,
        clippy::allow_attributes_without_reason,
        clippy::too_many_lines,
        clippy::excessive_nesting,
        reason = "generated code"
    )]
    tonic::include_proto!("longshore.v1");
}

pub use generated::*;

use model::{JobId, PROTOCOL, ProtocolRange};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Where the streams are on the server's port.
pub const COMPONENTS_PATH: &str = "/longshore.v1.Components/{method}";

/// The 16 bytes of an identifier.
pub fn id_bytes(id: u128) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(&id.to_be_bytes())
}

/// An identifier from 16 bytes.
pub fn id_from(bytes: &[u8]) -> Result<u128, tonic::Status> {
    let bytes: [u8; 16] = bytes
        .try_into()
        .map_err(|_| tonic::Status::invalid_argument("an identifier has 16 bytes"))?;
    Ok(u128::from_be_bytes(bytes))
}

/// Renders a noun for a `*_json` field.
pub fn json<T: Serialize>(value: &T) -> Result<bytes::Bytes, tonic::Status> {
    serde_json::to_vec(value)
        .map(bytes::Bytes::from)
        .map_err(|error| tonic::Status::internal(format!("cannot render a message: {error}")))
}

/// The messages that bring a router the table rendered as `json`, in order.
pub fn table_messages(mut json: bytes::Bytes) -> Vec<router_down::Message> {
    if json.len() <= crate::MAX_TABLE_PART {
        return vec![router_down::Message::TableJson(json)];
    }
    let mut messages = Vec::new();
    while !json.is_empty() {
        let part = json.split_to(json.len().min(crate::MAX_TABLE_PART));
        let last = json.is_empty();
        messages.push(router_down::Message::TablePart(TablePart { json: part, last }));
    }
    messages
}

/// Reads a noun from a `*_json` field.
pub fn from_json<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, tonic::Status> {
    serde_json::from_slice(bytes)
        .map_err(|error| tonic::Status::invalid_argument(format!("unreadable {what}: {error}")))
}

/// The first message of a component.
pub fn hello(id: u128, name: &str) -> Hello {
    Hello {
        id: id_bytes(id),
        name: name.to_owned(),
        version: crate::VERSION.to_owned(),
        protocol_min: PROTOCOL.min,
        protocol_current: PROTOCOL.current,
    }
}

impl Hello {
    /// The protocol versions the component speaks.
    pub const fn protocol(&self) -> ProtocolRange {
        ProtocolRange { min: self.protocol_min, current: self.protocol_current }
    }
}

impl Welcome {
    /// Refuses a server that goes on in a protocol this program does not speak.
    pub fn check(&self) -> Result<(), tonic::Status> {
        if (PROTOCOL.min..=PROTOCOL.current).contains(&self.protocol) {
            return Ok(());
        }
        Err(tonic::Status::failed_precondition(format!(
            "the server (version {}) chose protocol {}, this program (version {}) speaks {} to {}: \
             update the older of the two",
            self.version.chars().take(40).collect::<String>(),
            self.protocol,
            crate::VERSION,
            PROTOCOL.min,
            PROTOCOL.current
        )))
    }
}

impl Attempt {
    /// An attempt from its parts.
    pub fn of(job: JobId, epoch: u32) -> Self {
        Self { job: id_bytes(job.0), epoch }
    }

    /// The job.
    pub fn job_id(&self) -> Result<JobId, tonic::Status> {
        id_from(&self.job).map(JobId)
    }
}
