//! What a container reaches, and who reaches it.
//!
//! The cases make a network of their own beside the machine, with a host in it that answers.

use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::TcpStream;

use super::bench::soon;
use super::{Bench, Failure, Verdict, ensure};
use crate::driver::{Ability, Network};
use crate::spec::{EgressRule, Handle, ProcessId, ProcessSpec, Protocol, Publish};

/// What a listener says to whoever connects.
const GREETING: &[u8] = b"hello\n";
/// How long a connection may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// A network beside the machine, with private addresses and one host.
struct Beside {
    name: String,
    machine: Ipv4Addr,
    host: Ipv4Addr,
}

impl Beside {
    fn new() -> io::Result<Self> {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let [third, _, _, _] = std::process::id().to_le_bytes();
        let name = format!("shc{:x}-{number}", std::process::id());
        let address = |last| Ipv4Addr::new(10, 77, third, number.wrapping_mul(4) + last);
        let beside = Self { name, machine: address(1), host: address(2) };
        let Self { name, machine, host } = &beside;
        ip(&format!("netns add {name}\nlink add {name} type veth peer name out netns {name}\n"))?;
        ip(&format!("address add {machine}/30 dev {name}\nlink set {name} up\n"))?;
        let inside = format!(
            "address add {host}/30 dev out\nlink set out up\nroute add default via {machine}\n"
        );
        run(Command::new("ip").args(["-n", name, "-batch", "-"]), &inside)?;
        Ok(beside)
    }

    /// Does something on the host.
    fn inside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let network = std::fs::File::open(format!("/run/netns/{}", self.name))?;
        let (sender, receiver) = sync_channel(1);
        runtime::spawn_thread("beside", move || {
            let kind = Some(LinkNameSpaceType::Network);
            let entered = move_into_link_name_space(network.as_fd(), kind);
            // Who asked waits for it.
            drop(sender.send(entered.map_err(io::Error::from).and_then(|()| work())));
        })?;
        receiver.recv().map_err(io::Error::other)?
    }

    /// Answers on the host; gives the port.
    fn listen(&self) -> io::Result<u16> {
        let host = self.host;
        answer(self.inside(move || TcpListener::bind((host, 0)))?)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // The link goes away with the network.
        drop(ip(&format!("link delete {0}\nnetns delete {0}\n", self.name)));
    }
}

/// Greets everybody for as long as this process lives.
fn answer(listener: TcpListener) -> io::Result<u16> {
    let port = listener.local_addr()?.port();
    runtime::spawn_thread("answers", move || {
        for connection in listener.incoming().flatten() {
            let mut connection = connection;
            // Who only tries to connect is gone already.
            drop(connection.write_all(GREETING));
        }
    })?;
    Ok(port)
}

fn ip(batch: &str) -> io::Result<()> {
    run(Command::new("ip").args(["-batch", "-"]), batch)
}

fn run(command: &mut Command, input: &str) -> io::Result<()> {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()))
}

fn restricts(bench: &Bench) -> bool {
    bench.driver.capabilities().can(Ability::RestrictEgress)
}

impl Bench {
    /// Whether a container hears a greeting.
    async fn hears(
        &self,
        handle: &Handle,
        id: &str,
        (address, port): (IpAddr, u16),
    ) -> Result<bool, Failure> {
        let text = format!("busybox nc -w 2 {address} {port} < /dev/null; true");
        Ok(self.output(handle, id, &text).await?.stdout == GREETING)
    }
}

/// Sends packets from ports of its own to as many ports of a host as it may have connections, and
/// some more: not every one need be a connection that is kept.
const SPRAYER: &str = "
import socket, sys
host, most = sys.argv[1], int(sys.argv[2])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    for port in range(10_000, 10_000 + most + most // 4):
        try:
            sender.sendto(b'x', (host, port))
        except OSError:
            pass
";

fn rule(network: IpAddr, prefix: u8, ports: Option<(u16, u16)>) -> EgressRule {
    let protocol = if ports.is_some() { Protocol::Tcp } else { Protocol::All };
    EgressRule { network, prefix, protocol, ports }
}

pub(super) async fn private_addresses_need_a_rule(bench: Bench) -> Verdict {
    if !restricts(&bench) {
        return Ok(());
    }
    let beside = Beside::new()?;
    let (port, host) = (beside.listen()?, IpAddr::V4(beside.host));
    let closed = bench.named("closed").await?;
    ensure!(!bench.hears(&closed, "p", (host, port)).await?, "a private address without a rule");
    let exact = rule(host, 32, Some((port, port)));
    let open = bench.with("open", |spec| spec.egress = vec![exact]).await?;
    ensure!(bench.hears(&open, "p", (host, port)).await?, "a rule allows it");
    let other = beside.listen()?;
    ensure!(!bench.hears(&open, "q", (host, other)).await?, "another port than the rule's");
    ensure!(!bench.hears(&closed, "q", (host, port)).await?, "another container's rule");
    // The rule goes away with its container.
    bench.driver.remove(&open).await?;
    let again = bench.named("open").await?;
    ensure!(!bench.hears(&again, "p", (host, port)).await?, "a rule of an earlier container");
    Ok(())
}

pub(super) async fn the_machine_needs_a_rule(bench: Bench) -> Verdict {
    if !restricts(&bench) {
        return Ok(());
    }
    let beside = Beside::new()?;
    let port = answer(TcpListener::bind("0.0.0.0:0")?)?;
    let closed = bench.named("closed").await?;
    let gateway = bench.output(&closed, "gateway", "busybox ip route | sed -n 's/default via //p'");
    let gateway = gateway.await?.text();
    let gateway = gateway.split_whitespace().next().and_then(|text| text.parse().ok());
    let machine = IpAddr::V4(beside.machine);
    let addresses = [Some(machine), gateway].into_iter().flatten();
    for (number, address) in addresses.enumerate() {
        let heard = bench.hears(&closed, &format!("p{number}"), (address, port)).await?;
        ensure!(!heard, "the machine at {address}");
    }
    let exact = rule(machine, 32, None);
    let open = bench.with("open", |spec| spec.egress = vec![exact]).await?;
    ensure!(bench.hears(&open, "p", (machine, port)).await?, "a rule allows the machine");
    Ok(())
}

pub(super) async fn connections_of_one_leave_room_for_others(bench: Bench) -> Verdict {
    if !restricts(&bench) {
        return Ok(());
    }
    let beside = Beside::new()?;
    let (port, host) = (beside.listen()?, IpAddr::V4(beside.host));
    let all = rule(host, 32, None);
    let greedy = bench.with("greedy", |spec| spec.egress = vec![all.clone()]).await?;
    bench.needs_python(&greedy).await?;
    ensure!(bench.hears(&greedy, "before", (host, port)).await?, "it has connections left");
    let (most, at) = (crate::spec::MAX_CONNECTIONS.to_string(), host.to_string());
    let spec = ProcessSpec::new(ProcessId::new("p")?, ["python3", "-c", SPRAYER, &at, &most]);
    let (exit, written) = bench.run(&greedy, spec).await?;
    ensure!(exit.success(), "{exit:?} {}", String::from_utf8_lossy(&written.stderr));
    ensure!(!bench.hears(&greedy, "after", (host, port)).await?, "more connections than it may");
    let neighbour = bench.with("neighbour", |spec| spec.egress = vec![all]).await?;
    ensure!(bench.hears(&neighbour, "p", (host, port)).await?, "a neighbour has its own");
    Ok(())
}

pub(super) async fn metadata_services_are_out_of_reach(bench: Bench) -> Verdict {
    if !restricts(&bench) {
        return Ok(());
    }
    let handle = bench.container().await?;
    for (number, address) in
        ["169.254.169.254", "169.254.170.2", "100.100.100.200"].iter().enumerate()
    {
        // Refused at once: a container must not wait for what it never gets.
        let text = format!(
            "busybox nc -w 10 {address} 80 < /dev/null 2>&1; test $? -ne 0 && echo refused"
        );
        let begin = runtime::mono_now();
        let written = bench.output(&handle, &format!("p{number}"), &text).await?.text();
        ensure!(written.ends_with("refused\n"), "{address}: {written}");
        ensure!(runtime::mono_now() - begin < Duration::from_secs(8), "{address}: not refused");
    }
    Ok(())
}

pub(super) async fn containers_do_not_reach_each_other(bench: Bench) -> Verdict {
    if !restricts(&bench) {
        return Ok(());
    }
    let server = bench.named("server").await?;
    let text = "echo ready; exec busybox nc -ll -p 8080 -e echo hello";
    bench.ready(&server, "p", text).await?;
    let Network::Own(address) = bench.driver.network(&server) else { return Ok(()) };
    reach(SocketAddr::new(address, 8080)).await?;
    let client = bench.named("client").await?;
    ensure!(!bench.hears(&client, "p", (address, 8080)).await?, "a neighbour");
    ensure!(bench.hears(&server, "q", (address, 8080)).await?, "itself");
    ensure!(bench.hears(&server, "r", (Ipv4Addr::LOCALHOST.into(), 8080)).await?, "its loopback");
    let before = bench.driver.network(&client);
    bench.driver.remove(&client).await?;
    let next = bench.named("client").await?;
    ensure!(bench.driver.network(&next) != before, "an address was used again at once");
    Ok(())
}

/// Connects from the machine until it works.
async fn reach(address: SocketAddr) -> Verdict {
    let look = async {
        loop {
            match runtime::timeout(PATIENCE, TcpStream::connect(address)).await {
                Some(Ok(_)) => return,
                Some(Err(_)) | None => runtime::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    soon("connect from the machine", look).await
}

pub(super) async fn others_do_not_reach_containers(bench: Bench) -> Verdict {
    if !restricts(&bench) {
        return Ok(());
    }
    let beside = Beside::new()?;
    let server = bench.named("server").await?;
    let text = "echo ready; exec busybox nc -ll -p 8080 -e echo hello";
    bench.ready(&server, "p", text).await?;
    let Network::Own(address) = bench.driver.network(&server) else { return Ok(()) };
    reach(SocketAddr::new(address, 8080)).await?;
    let mut outside = Command::new("ip");
    outside.args(["netns", "exec", &beside.name, "busybox", "nc", "-w", "2"]);
    outside.args([address.to_string(), "8080".to_owned()]).stdin(Stdio::null());
    let output = outside.output()?;
    ensure!(output.stdout.is_empty(), "a host beside the machine reaches a container");
    Ok(())
}

pub(super) async fn a_published_port_leads_to_its_container(bench: Bench) -> Verdict {
    if !bench.driver.capabilities().can(Ability::Publish) {
        return Ok(());
    }
    let beside = Beside::new()?;
    let free = TcpListener::bind((beside.machine, 0))?.local_addr()?.port();
    let publish = Publish { host: free, container: 8080 };
    let server = bench.with("published", |spec| spec.publish.push(publish)).await?;
    let text = "echo ready; exec busybox nc -ll -p 8080 -e echo hello";
    bench.ready(&server, "p", text).await?;
    if let Network::Own(address) = bench.driver.network(&server) {
        reach(SocketAddr::new(address, 8080)).await?;
    }
    let ask = |name: &str, host: &str, port: u16| -> io::Result<String> {
        let mut outside = Command::new("ip");
        outside.args(["netns", "exec", name, "busybox", "nc", "-w", "2", host, &port.to_string()]);
        let output = outside.stdin(Stdio::null()).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let host = beside.machine.to_string();
    ensure!(ask(&beside.name, &host, free)? == "hello\n", "a published port leads nowhere");
    let here = SocketAddr::new(beside.machine.into(), free);
    reach(here).await?;
    bench.driver.remove(&server).await?;
    let after = ask(&beside.name, &host, free)?;
    ensure!(after.is_empty(), "a port leads somewhere after its container is gone: {after}");
    Ok(())
}

/// Sends one datagram from the container's own address, and one each from others'.
const FORGER: &str = "
import socket, sys
host, port = sys.argv[1], int(sys.argv[2])
for source in sys.argv[3:]:
    out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        out.setsockopt(socket.IPPROTO_IP, 15, 1)
        out.bind((source, 0))
        out.sendto(source.encode(), (host, port))
    except OSError:
        pass
";

pub(super) async fn sources_cannot_be_forged(bench: Bench) -> Verdict {
    if !restricts(&bench) {
        return Ok(());
    }
    let beside = Beside::new()?;
    let host = beside.host;
    let socket = beside.inside(move || UdpSocket::bind((host, 0)))?;
    let port = socket.local_addr()?.port();
    let all = rule(host.into(), 32, None);
    let handle = bench.with("c", |spec| spec.egress = vec![all]).await?;
    if bench.output(&handle, "look", "command -v python3 || true").await?.text().is_empty() {
        return Ok(());
    }
    let Network::Own(own) = bench.driver.network(&handle) else { return Ok(()) };
    let (port, host) = (port.to_string(), host.to_string());
    let own = own.to_string();
    let sources = ["10.208.255.254", "8.8.8.8", "127.0.0.1", &own];
    let command = ["python3", "-c", FORGER, &host, &port].into_iter().chain(sources);
    let spec = ProcessSpec::new(ProcessId::new("p")?, command);
    let (exit, _) = bench.run(&handle, spec).await?;
    ensure!(exit.success(), "{exit:?}");
    socket.set_read_timeout(Some(PATIENCE))?;
    let heard = runtime::blocking(move || {
        let mut heard = Vec::new();
        let mut buffer = [0; 64];
        // The last one sent is the only one that may come.
        while let Ok(bytes) = socket.recv(&mut buffer) {
            heard.push(
                String::from_utf8_lossy(buffer.get(..bytes).unwrap_or_default()).into_owned(),
            );
            if socket.set_read_timeout(Some(Duration::from_millis(300))).is_err() {
                break;
            }
        }
        heard
    });
    let heard = heard.await;
    ensure!(heard == [own], "{heard:?}");
    Ok(())
}
