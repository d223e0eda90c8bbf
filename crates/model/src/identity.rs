//! The names by which instances and routers prove who they are.

use crate::InstanceId;

/// The name in the certificate of every router.
pub const ROUTER_HOST: &str = "router.internal";
/// Where the certificates of an instance and their key are, in its container.
pub const IDENTITY_DIR: &str = "/run/shore/identity";

/// The name in the certificate of one attempt at an instance. The next one has another name, so
/// nothing that is meant for this one reaches it.
pub fn instance_host(id: InstanceId, epoch: u32) -> String {
    format!("{}.{epoch}.instance.internal", id.to_string().replace('_', "-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_an_instance_is_a_host_name() {
        let name = instance_host(InstanceId(7), 3);
        assert_eq!(name, "ins-00000000000000000000000007.3.instance.internal");
        assert!(name.parse::<crate::HostName>().is_ok());
        assert_ne!(name, instance_host(InstanceId(7), 4));
    }
}
