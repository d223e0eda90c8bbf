//! The agent against a server in this process and real containers of the process driver.

mod bench;
mod images;
mod instances;
mod restarts;
mod server;
mod tasks;
mod transfers;
