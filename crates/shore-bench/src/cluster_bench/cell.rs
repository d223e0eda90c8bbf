//! Cells that run nothing: each has a connection of its own, and reports that what it was told to
//! run has started and passes its checks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api::Endpoint;
use api::proto::cell_down::Message as Down;
use api::proto::cell_up::Message as Up;
use api::proto::components_client::ComponentsClient;
use api::proto::work::Kind;
use api::proto::{CellDown, CellHello, CellUp, Heartbeat, Report, Work, hello, json};
use model::{InstanceReport, JoinToken};
use runtime::Tasks;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Request, Streaming};

use crate::workload;

/// As real cells do.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Reports that wait at a cell.
const QUEUE: usize = 256;
/// Cells that connect at once.
const AT_ONCE: usize = 50;

#[derive(Debug, Default)]
struct Counts {
    reports: AtomicU64,
    lost: AtomicU64,
}

/// Cells that are connected.
pub(super) struct Cells(Arc<Counts>);

struct Cell {
    number: u32,
    up: mpsc::Sender<CellUp>,
    down: Streaming<CellDown>,
    counts: Arc<Counts>,
    stop: runtime::Stop,
}

impl Cells {
    /// Connects so many, and waits until each was welcomed.
    pub(super) async fn join(
        url: &str,
        token: JoinToken,
        cells: u32,
        tasks: &Tasks,
    ) -> Result<Self, String> {
        let counts = Arc::<Counts>::default();
        let endpoint = Endpoint::new(url, token).map_err(|error| error.to_string())?;
        let numbers: Vec<u32> = (0..cells).collect();
        for some in numbers.chunks(AT_ONCE) {
            let joined = some.iter().map(|number| Cell::join(*number, &endpoint, &counts, tasks));
            for cell in futures_util::future::try_join_all(joined).await? {
                tasks.spawn_ok("cell", cell.serve());
            }
        }
        Ok(Self(counts))
    }

    /// What all of them have reported.
    pub(super) fn reports(&self) -> u64 {
        self.0.reports.load(Ordering::Relaxed)
    }

    /// Connections that broke.
    pub(super) fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }
}

impl Cell {
    async fn join(
        number: u32,
        endpoint: &Endpoint,
        counts: &Arc<Counts>,
        tasks: &Tasks,
    ) -> Result<Self, String> {
        let text = |error: &dyn std::fmt::Display| format!("cell {number}: {error}");
        let connector = endpoint.connector().map_err(|error| text(&error))?;
        let channel = tonic::transport::Endpoint::from(endpoint.url.clone());
        let channel = channel.connect_with_connector(connector).await;
        let mut client = ComponentsClient::new(channel.map_err(|error| text(&error))?)
            .max_decoding_message_size(api::MAX_MESSAGE);
        let (up, queue) = mpsc::channel(QUEUE);
        let mut request = Request::new(ReceiverStream::new(queue));
        let bearer: MetadataValue<Ascii> =
            format!("Bearer {}", endpoint.token).parse().map_err(|error| text(&error))?;
        request.metadata_mut().insert("authorization", bearer);
        let spec = workload::cell(number)?;
        let hello = CellHello {
            hello: Some(hello(u128::from(number) + 1, spec.name.as_str())),
            spec_json: json(&spec).map_err(|error| text(&error))?,
            holds: Vec::new(),
        };
        let first = CellUp { message: Some(Up::Hello(hello)) };
        up.send(first).await.map_err(|error| text(&error))?;
        let down = client.cell(request).await.map_err(|error| text(&error))?.into_inner();
        let (counts, stop) = (Arc::clone(counts), tasks.stop().clone());
        let mut cell = Self { number, up, down, counts, stop };
        match cell.down.message().await {
            Ok(Some(CellDown { message: Some(Down::Welcome(_)) })) => Ok(cell),
            other => Err(text(&format!("not welcome: {other:?}"))),
        }
    }

    async fn serve(self) {
        let Self { number, up, mut down, counts, stop } = self;
        let beat = async {
            while stop.or_stop(runtime::sleep(HEARTBEAT)).await.is_some() {
                let message = Some(Up::Heartbeat(Heartbeat {}));
                if up.send(CellUp { message }).await.is_err() {
                    return;
                }
            }
        };
        let mut port = 0;
        let listen = async {
            while let Ok(Some(CellDown { message })) = down.message().await {
                let Some(Down::Desired(desired)) = message else { continue };
                for work in desired.work.into_iter().filter(|work| work.spec_json.is_some()) {
                    port += 1;
                    let Some(work) = work.work.filter(|it| it.kind() == Kind::Instance) else {
                        continue;
                    };
                    started(&up, work, address(number, port), &counts).await;
                }
            }
            counts.lost.fetch_add(u64::from(!stop.is_stopped()), Ordering::Relaxed);
        };
        tokio::select! {
            () = beat => {}
            () = listen => {}
        }
    }
}

fn address(number: u32, port: u16) -> SocketAddr {
    let [.., high, low] = number.to_be_bytes();
    SocketAddr::from(([10, 0, high, low], port))
}

async fn started(up: &mpsc::Sender<CellUp>, work: Work, address: SocketAddr, counts: &Counts) {
    for report in [InstanceReport::Started { address }, InstanceReport::Ready { ready: true }] {
        let Ok(report_json) = json(&report) else { return };
        let report = Report { work: Some(work.clone()), report_json };
        counts.reports.fetch_add(1, Ordering::Relaxed);
        // A connection that broke counts as lost.
        drop(up.send(CellUp { message: Some(Up::Report(report)) }).await);
    }
}
