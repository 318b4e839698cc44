//! gRPC through the proxy: a real service and a real client, over HTTP/2 in clear text on either side.

use crate::http2::User;
use crate::process::{EJECT_MS, PROTOCOL};
use crate::upstream::{Upstream, own_address};
use crate::world::{World, table};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Method;
use sim_api::v1;
use sim_api::v1::control_plane_client::ControlPlaneClient;
use sim_api::v1::control_plane_server::{ControlPlane, ControlPlaneServer};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};

type Sent<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Client = ControlPlaneClient<Channel>;

/// An instance that speaks gRPC. What it serves is the one contract that this project has; what it answers is its own
/// matter.
pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    pub(crate) counts: Arc<Counts>,
    /// Its own, so that its end takes the connections with it.
    runtime: Option<Runtime>,
}

#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) calls: AtomicU64,
    /// Calls that have begun and whose caller is still there.
    pub(crate) open: AtomicU64,
}

impl Service {
    pub(crate) async fn start(name: &'static str) -> Self {
        Self::start_on(name, own_address()).await
    }

    async fn start_on(name: &'static str, address: SocketAddr) -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let counts = Arc::<Counts>::default();
        let instance = Instance {
            name,
            counts: counts.clone(),
        };
        let served = runtime.spawn(async move {
            let listener = TcpListener::bind(address).await.expect("a port");
            let address = listener.local_addr().expect("bound");
            tokio::spawn(
                tonic::transport::Server::builder()
                    .add_service(ControlPlaneServer::new(instance))
                    .serve_with_incoming(TcpListenerStream::new(listener)),
            );
            address
        });
        Self {
            address: served.await.expect("served"),
            counts,
            runtime: Some(runtime),
        }
    }

    /// As by SIGKILL; nothing of it is left then.
    pub(crate) async fn kill(mut self) {
        let runtime = self.runtime.take();
        let ended = tokio::task::spawn_blocking(move || drop(runtime));
        ended.await.expect("no panic");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Instance {
    name: &'static str,
    counts: Arc<Counts>,
}

/// Open for as long as it lives.
struct Open(Arc<Counts>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Instance {
    fn open(&self) -> Open {
        self.counts.calls.fetch_add(1, Ordering::SeqCst);
        self.counts.open.fetch_add(1, Ordering::SeqCst);
        Open(self.counts.clone())
    }
}

fn not_here<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not part of this test"))
}

#[tonic::async_trait]
impl ControlPlane for Instance {
    type NodeStream = Sent<v1::NodeCommand>;
    type ProxyStream = Sent<v1::RoutingTable>;
    type JournalStream = Sent<v1::JournalRecord>;

    /// Its name.
    async fn status(
        &self,
        _: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusReply>, Status> {
        let _open = self.open();
        let mut reply = Response::new(v1::StatusReply {
            workloads_json: vec![self.name.to_owned()],
            ..v1::StatusReply::default()
        });
        let named = self.name.parse().expect("valid");
        reply.metadata_mut().insert("instance", named);
        Ok(reply)
    }

    /// `from` records; if it is to follow, the stream stays open after them.
    async fn journal(
        &self,
        request: Request<v1::JournalRequest>,
    ) -> Result<Response<Self::JournalStream>, Status> {
        let (open, wanted, name) = (self.open(), request.into_inner(), self.name);
        let records = (1..=wanted.from).map(move |sequence| {
            Ok(v1::JournalRecord {
                sequence,
                json: name.to_owned(),
            })
        });
        let end: Sent<_> = if wanted.follow {
            Box::pin(tokio_stream::pending())
        } else {
            Box::pin(tokio_stream::once(Err(Status::data_loss("the end"))))
        };
        let stream = tokio_stream::iter(records).chain(end);
        Ok(Response::new(Box::pin(stream.map(move |record| {
            let _open = &open;
            record
        }))))
    }

    /// A table for each report, as long as reports come.
    async fn proxy(
        &self,
        request: Request<Streaming<v1::ProxyReport>>,
    ) -> Result<Response<Self::ProxyStream>, Status> {
        let open = self.open();
        let tables = request.into_inner().map(move |report| {
            let _open = &open;
            report.map(|_| v1::RoutingTable::default())
        });
        Ok(Response::new(Box::pin(tables)))
    }

    /// Never answers.
    async fn close(
        &self,
        _: Request<v1::CloseRequest>,
    ) -> Result<Response<v1::CloseReply>, Status> {
        let _open = self.open();
        std::future::pending().await
    }

    /// Fails as a broken server does.
    async fn set_standby(
        &self,
        _: Request<v1::SetStandbyRequest>,
    ) -> Result<Response<v1::SetStandbyReply>, Status> {
        let _open = self.open();
        Err(Status::internal("broken"))
    }

    async fn node(
        &self,
        _: Request<Streaming<v1::NodeReport>>,
    ) -> Result<Response<Self::NodeStream>, Status> {
        not_here()
    }
}

pub(crate) async fn connect(world: &World) -> Client {
    let endpoint = Endpoint::from_shared(format!("http://{}", world.proxy)).expect("valid");
    ControlPlaneClient::new(endpoint.connect().await.expect("connected"))
}

pub(crate) fn lines(services: &[Service; 2], first_bp: u16) -> [(u64, SocketAddr, u16, bool); 2] {
    [
        (1, services[0].address, first_bp, true),
        (2, services[1].address, 10_000 - first_bp, true),
    ]
}

async fn world_of_two(first_bp: u16) -> (World, crate::control::Control, [Service; 2]) {
    world_of_two_and(first_bp, &[]).await
}

async fn world_of_two_and(
    first_bp: u16,
    settings: &[(&str, &str)],
) -> (World, crate::control::Control, [Service; 2]) {
    let settings = [&[(PROTOCOL, "h2")], settings].concat();
    let (world, mut control) = World::start_with(&settings);
    let services = [Service::start("i1").await, Service::start("i2").await];
    control
        .publish(&table(1, 1, &lines(&services, first_bp)))
        .await;
    (world, control, services)
}

async fn name(client: &mut Client) -> Result<String, Status> {
    let reply = client.status(v1::StatusRequest {}).await?;
    let mut reply = reply.into_inner();
    Ok(reply.workloads_json.pop().expect("a name"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_one_channel_are_split_by_weight_and_obey_a_new_table_at_once() {
    let (world, mut control, services) = world_of_two(7_500).await;
    let mut client = connect(&world).await;
    for _ in 0..200 {
        name(&mut client).await.expect("an answer");
    }
    let first = services[0].counts.calls.load(Ordering::SeqCst);
    assert!((148..=152).contains(&first), "{first} of 200");
    control.publish(&table(1, 2, &lines(&services, 0))).await;
    for _ in 0..50 {
        assert_eq!(name(&mut client).await.expect("an answer"), "i2");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_pass_both_ways_and_trailers_with_them() {
    let (world, _control, _services) = world_of_two(5_000).await;
    let mut client = connect(&world).await;
    // What the server ends with stands in the trailers.
    let wanted = v1::JournalRequest {
        from: 1_000,
        follow: false,
    };
    let mut records = client.journal(wanted).await.expect("a stream").into_inner();
    for sequence in 1..=1_000 {
        let record = records.message().await.expect("a record").expect("more");
        assert_eq!(record.sequence, sequence);
    }
    let status = records.message().await.expect_err("the end");
    assert_eq!(
        (status.code(), status.message()),
        (Code::DataLoss, "the end")
    );

    // Each answer before the next question: nothing may be held back.
    let (ask, questions) = tokio::sync::mpsc::channel(1);
    let questions = tokio_stream::wrappers::ReceiverStream::new(questions);
    let mut answers = client
        .proxy(questions)
        .await
        .expect("a stream")
        .into_inner();
    for _ in 0..100 {
        ask.send(v1::ProxyReport::default()).await.expect("open");
        answers.message().await.expect("an answer").expect("more");
    }
    drop(ask);
    assert!(answers.message().await.expect("the end").is_none());
    let metrics = world.settled().await;
    // DATA_LOSS is the server's failure.
    assert_eq!(
        metrics.sum("sim_proxy_requests_ended_total", &["failed"]),
        1.0
    );
    assert_eq!(metrics.sum("sim_proxy_requests_ended_total", &["ok"]), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_reaches_no_instance_is_unavailable() {
    let (world, mut control) = World::start_with(&[(PROTOCOL, "h2")]);
    let mut client = connect(&world).await;
    let status = name(&mut client).await.expect_err("no table");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("no instance"), "{status:?}");

    let service = Service::start("i1").await;
    let only = [(1, service.address, 10_000, true)];
    control.publish(&table(1, 1, &only)).await;
    assert_eq!(name(&mut client).await.expect("an answer"), "i1");
    service.kill().await;
    let status = name(&mut client).await.expect_err("nobody is left");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_kill_only_calls_that_the_dead_one_may_have_acted_on_fail() {
    let (world, _control, [first, second]) = world_of_two(5_000).await;
    let client = connect(&world).await;
    let (mut callers, stop) = (tokio::task::JoinSet::new(), Arc::<AtomicBool>::default());
    for _ in 0..8 {
        let (mut client, stop) = (client.clone(), stop.clone());
        callers.spawn(async move {
            let mut failed = vec![];
            while !stop.load(Ordering::SeqCst) {
                failed.extend(name(&mut client).await.err());
            }
            failed
        });
    }
    let calls_of = |service: &Service| service.counts.calls.load(Ordering::SeqCst);
    while calls_of(&first) < 200 {
        tokio::task::yield_now().await;
    }
    first.kill().await;
    let before = calls_of(&second);
    while calls_of(&second) < before + 1_000 {
        tokio::task::yield_now().await;
    }
    stop.store(true, Ordering::SeqCst);
    let failed: Vec<_> = callers.join_all().await.into_iter().flatten().collect();
    // Each has one call under way at its death, and the next may be on its way before that is heard of.
    assert!(failed.len() <= 16, "{failed:?}");
    assert!(
        failed
            .iter()
            .all(|status| status.code() == Code::Unavailable)
    );
    let metrics = world.settled().await;
    assert!(metrics.sum("sim_proxy_ejections_total", &["i1"]) >= 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_instance_dies_ends_as_unavailable() {
    let (world, _control, [first, _second]) = world_of_two(10_000).await;
    let mut client = connect(&world).await;
    let wanted = v1::JournalRequest {
        from: 3,
        follow: true,
    };
    let mut records = client.journal(wanted).await.expect("a stream").into_inner();
    for _ in 0..3 {
        records.message().await.expect("a record").expect("more");
    }
    first.kill().await;
    let status = records.message().await.expect_err("cut");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert_eq!(name(&mut client).await.expect("an answer"), "i2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_gives_up_is_given_up_at_the_instance_too() {
    let (world, _control, services) = world_of_two(10_000).await;
    let mut leaving = connect(&world).await;
    let call = tokio::spawn(async move { leaving.close(v1::CloseRequest {}).await });
    let open = &services[0].counts.open;
    while services[0].counts.calls.load(Ordering::SeqCst) < 1 {
        tokio::task::yield_now().await;
    }
    call.abort();
    while open.load(Ordering::SeqCst) > 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let metrics = world.settled().await;
    assert_eq!(metrics.sum("sim_proxy_ejections_total", &[]), 0.0);
    assert_eq!(
        metrics.sum("sim_proxy_requests_ended_total", &["aborted"]),
        1.0
    );
}

/// Neither end watches it: tonic's client and server would.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_s_deadline_is_kept_and_is_not_the_instance_s_fault() {
    let (world, mut control) = World::start_with(&[(PROTOCOL, "h2")]);
    let up = Upstream::start("i1").await;
    let only = [(1, up.address, 10_000, true)];
    control.publish(&table(1, 1, &only)).await;
    let (mut user, _connection) = User::connect(&world).await;
    for _ in 0..6 {
        let call = user
            .request(Method::POST, "/hang")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("grpc-timeout", "50m")
            .body(Full::new(Bytes::from_static(&[0; 5])))
            .expect("valid");
        let answer = user.requests.send_request(call).await.expect("an answer");
        assert_eq!(answer.status(), 200);
        let answer = answer.into_body().collect().await.expect("whole");
        let trailers = answer.trailers().expect("trailers");
        assert_eq!(trailers["grpc-status"], "4");
    }
    let metrics = world.metrics().await;
    assert_eq!(metrics.sum("sim_proxy_ejections_total", &[]), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ejected_instance_is_asked_again_where_no_request_may_be_repeated() {
    let (world, _control, services) = world_of_two(10_000).await;
    let mut client = connect(&world).await;
    for _ in 0..4 {
        let status = client.set_standby(v1::SetStandbyRequest::default()).await;
        assert_eq!(status.expect_err("broken").code(), Code::Internal);
    }
    let ejected = Instant::now();
    let status = client.set_standby(v1::SetStandbyRequest::default()).await;
    assert_eq!(status.expect_err("broken").code(), Code::Internal);
    let mut back = false;
    for _ in 0..3_000 {
        back = name(&mut client).await.expect("an answer") == "i1";
        if back {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(back, "{:#?}", world.metrics().await);
    // Not when its time was over, but when long enough no request had come that could be repeated.
    assert!(ejected.elapsed() >= Duration::from_millis(5_500));
    assert_eq!(world.metrics().await.sum("sim_proxy_ejected", &["i1"]), 0.0);
    assert_eq!(services[0].counts.calls.load(Ordering::SeqCst), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_go_to_a_killed_instance_again_once_it_is_back() {
    let (world, _control, [first, second]) = world_of_two(9_500).await;
    let mut client = connect(&world).await;
    for _ in 0..20 {
        name(&mut client).await.expect("an answer");
    }
    let address = first.address;
    first.kill().await;
    let mut failed = 0;
    for _ in 0..50 {
        failed += usize::from(name(&mut client).await.is_err());
    }
    // The one that noticed, if nothing had told of the death before.
    assert!(failed <= 1, "{failed}");
    let back = Service::start_on("i1", address).await;
    for _ in 0..3_000 {
        name(&mut client).await.expect("an answer");
        if back.counts.calls.load(Ordering::SeqCst) > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(back.counts.calls.load(Ordering::SeqCst) > 0);
    assert!(second.counts.calls.load(Ordering::SeqCst) >= 49);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_whose_calls_fail_in_a_row_is_ejected_though_each_is_a_200() {
    let (world, _control, services) = world_of_two_and(10_000, &[(EJECT_MS, "600000")]).await;
    let mut client = connect(&world).await;
    for _ in 0..5 {
        let status = client.set_standby(v1::SetStandbyRequest::default()).await;
        assert_eq!(status.expect_err("broken").code(), Code::Internal);
    }
    assert_eq!(name(&mut client).await.expect("an answer"), "i2");
    assert_eq!(services[0].counts.calls.load(Ordering::SeqCst), 5);
    let metrics = world.settled().await;
    assert_eq!(
        metrics.sum("sim_proxy_requests_ended_total", &["failed"]),
        5.0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_go_to_an_instance_that_is_back_but_out_when_the_other_dies() {
    let (world, _control, [first, second]) = world_of_two_and(5_000, &[(EJECT_MS, "600000")]).await;
    let mut client = connect(&world).await;
    for _ in 0..20 {
        name(&mut client).await.expect("an answer");
    }
    let address = first.address;
    first.kill().await;
    let is_out = async || {
        world
            .metrics()
            .await
            .sum("sim_proxy_ejections_total", &["i1"])
            > 0.0
    };
    while !is_out().await {
        // One may be lost with it.
        name(&mut client).await.ok();
    }
    let _back = Service::start_on("i1", address).await;
    second.kill().await;
    let mut failed = 0;
    for _ in 0..20 {
        match name(&mut client).await {
            Ok(by) => assert_eq!(by, "i1"),
            Err(_) => failed += 1,
        }
    }
    // The one that noticed, if nothing had told of the death before.
    assert!(failed <= 1, "{failed}: {:#?}", world.metrics().await);
}
