//! The agent against a server in this process and real containers of the process driver.

mod bench;
mod identity;
mod images;
mod instances;
mod layout;
mod restarts;
mod server;
mod sessions;
mod tasks;
mod transfers;
mod volumes;
