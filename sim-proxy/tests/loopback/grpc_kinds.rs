//! Every kind of call that gRPC's interoperability tests know, by tonic's client and server with the proxy between them.
//! (The tests themselves are in no registry.) What is sent are bytes: the proxy doesn't look at messages.

use crate::control::Control;
use crate::process::PROTOCOL;
use crate::upstream::{own_address, pattern};
use crate::world::{World, table};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{Body as HttpBody, BoxFuture, Service, StdError, http};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::server::{NamedService, StreamingService};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};

type Message = Vec<u8>;
type Sent = Pin<Box<dyn Stream<Item = Result<Message, Status>> + Send>>;

/// Messages as they are.
#[derive(Clone, Copy, Default)]
struct Bytes;

impl Codec for Bytes {
    type Encode = Message;
    type Decode = Message;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Bytes {
    type Item = Message;
    type Error = Status;

    fn encode(&mut self, message: Message, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(to, &message);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = Message;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Message>, Status> {
        let mut message = vec![0; bytes::Buf::remaining(from)];
        bytes::Buf::copy_to_slice(from, &mut message);
        Ok(Some(message))
    }
}

/// What an instance does, by the name of the method:
/// * `Echo` gives back each message as it comes;
/// * `Sum` says at the end how many bytes came;
/// * `Fan` answers with messages as long as the first one's numbers, and then with status OK;
/// * `Status` answers with no message, but with the first one's code and text;
/// * `Late` does so after a message;
/// * `Hang` never answers.
#[derive(Clone)]
struct Test;

impl NamedService for Test {
    const NAME: &'static str = "interop.Test";
}

impl<B> Service<http::Request<B>> for Test
where
    B: HttpBody + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let method = Method(request.uri().path().to_owned());
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(Bytes).max_decoding_message_size(usize::MAX);
            Ok(grpc.streaming(method, request).await)
        })
    }
}

struct Method(String);

impl StreamingService<Message> for Method {
    type Response = Message;
    type ResponseStream = Sent;
    type Future = BoxFuture<Response<Sent>, Status>;

    fn call(&mut self, request: Request<Streaming<Message>>) -> Self::Future {
        let name = self.0.rsplit('/').next().unwrap_or_default().to_owned();
        Box::pin(answer(name, request))
    }
}

/// What the user sent of its own.
fn own(metadata: &MetadataMap) -> MetadataMap {
    let mut own = MetadataMap::new();
    if let Some(text) = metadata.get("x-text") {
        own.insert("x-text", text.clone());
    }
    if let Some(bytes) = metadata.get_bin("x-bytes-bin") {
        own.insert_bin("x-bytes-bin", bytes.clone());
    }
    own
}

async fn answer(
    name: String,
    request: Request<Streaming<Message>>,
) -> Result<Response<Sent>, Status> {
    let own = own(request.metadata());
    let mut messages = request.into_inner();
    let sent: Sent = match name.as_str() {
        "Echo" => Box::pin(messages),
        "Sum" => {
            let mut sum = 0;
            while let Some(message) = messages.message().await? {
                sum += message.len();
            }
            Box::pin(tokio_stream::once(Ok(sum.to_string().into_bytes())))
        }
        "Fan" => {
            let first = messages.message().await?.unwrap_or_default();
            let lengths: Vec<usize> = words(&first)
                .map(|word| word.parse().unwrap_or(0))
                .collect();
            let messages = lengths
                .into_iter()
                .map(|length| Ok(pattern(length).to_vec()));
            Box::pin(tokio_stream::iter(messages))
        }
        "Status" | "Late" => {
            let first = messages.message().await?.unwrap_or_default();
            let (code, text) = first.split_first().expect("a code");
            let text = String::from_utf8_lossy(text).into_owned();
            let status = Status::with_metadata(Code::from(i32::from(*code)), text, own.clone());
            if name == "Status" {
                return Err(status);
            }
            let answer = [Ok(b"first".to_vec()), Err(status)];
            Box::pin(tokio_stream::iter(answer))
        }
        "Hang" => std::future::pending().await,
        other => return Err(Status::unimplemented(other)),
    };
    let mut response = Response::new(sent);
    *response.metadata_mut() = own;
    Ok(response)
}

fn words(message: &[u8]) -> impl Iterator<Item = &str> {
    std::str::from_utf8(message).unwrap_or_default().split(' ')
}

struct User {
    grpc: Grpc<Channel>,
    world: World,
    _control: Control,
}

impl User {
    async fn start() -> Self {
        let (world, mut control) = World::start_with(&[(PROTOCOL, "h2")]);
        let listener = TcpListener::bind(own_address()).await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let incoming = TcpListenerStream::new(listener);
        let server = tonic::transport::Server::builder().add_service(Test);
        tokio::spawn(server.serve_with_incoming(incoming));
        let only = [(1, address, 10_000, true)];
        control.publish(&table(1, 1, &only)).await;
        let endpoint = Endpoint::from_shared(format!("http://{}", world.proxy)).expect("valid");
        let channel = endpoint.connect().await.expect("connected");
        Self {
            grpc: Grpc::new(channel).max_decoding_message_size(usize::MAX),
            world,
            _control: control,
        }
    }

    async fn call(
        &mut self,
        path: &'static str,
        request: Request<impl Stream<Item = Message> + Send + 'static>,
    ) -> Result<Response<Streaming<Message>>, Status> {
        self.grpc.ready().await.expect("a channel");
        let path = PathAndQuery::from_static(path);
        self.grpc.streaming(request, path, Bytes).await
    }

    async fn unary(
        &mut self,
        path: &'static str,
        request: Request<Message>,
    ) -> Result<Response<Message>, Status> {
        self.grpc.ready().await.expect("a channel");
        let path = PathAndQuery::from_static(path);
        self.grpc.unary(request, path, Bytes).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unary_call_of_any_size_is_answered_whole() {
    let mut user = User::start().await;
    for length in [0, 1, 271_828, 314_159, 6_000_000] {
        let message = pattern(length).to_vec();
        let answer = user
            .unary("/interop.Test/Echo", Request::new(message.clone()))
            .await;
        assert_eq!(answer.expect("an answer").into_inner(), message);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_the_user_s_has_one_answer_and_one_of_the_instance_s_one_question() {
    let mut user = User::start().await;
    let lengths = [27_182, 8, 0, 1_828, 45_904];
    let messages = tokio_stream::iter(lengths.map(|length| pattern(length).to_vec()));
    let answer = user.call("/interop.Test/Sum", Request::new(messages)).await;
    let mut answer = answer.expect("a stream").into_inner();
    let sum = answer.message().await.expect("a message");
    assert_eq!(sum, Some(b"74922".to_vec()));
    assert_eq!(answer.message().await.expect("the end"), None);

    let question = tokio_stream::once(b"31415 9 0 2653 58979".to_vec());
    let answers = user.call("/interop.Test/Fan", Request::new(question)).await;
    let mut answers = answers.expect("a stream").into_inner();
    for length in [31_415, 9, 0, 2_653, 58_979] {
        let message = answers.message().await.expect("a message");
        assert_eq!(message, Some(pattern(length).to_vec()));
    }
    assert_eq!(answers.message().await.expect("the end"), None);
    let none = user
        .call("/interop.Test/Echo", Request::new(tokio_stream::empty()))
        .await;
    let mut none = none.expect("a stream").into_inner();
    assert_eq!(none.message().await.expect("the end"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_answer_comes_before_the_next_question() {
    let mut user = User::start().await;
    let (ask, questions) = mpsc::channel(1);
    let questions = Request::new(ReceiverStream::new(questions));
    let answers = user.call("/interop.Test/Echo", questions).await;
    let mut answers = answers.expect("a stream").into_inner();
    for length in [27_182, 8, 1_828, 45_904, 0] {
        let message = pattern(length).to_vec();
        ask.send(message.clone()).await.expect("open");
        assert_eq!(answers.message().await.expect("a message"), Some(message));
    }
    drop(ask);
    assert_eq!(answers.message().await.expect("the end"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_status_arrives_with_its_text_with_and_without_a_message_before() {
    let mut user = User::start().await;
    let text = "\t\ntest with whitespace\r\nand Unicode BMP \u{263a} and non-BMP \u{1f608}\t\n";
    for code in 1..=16_u8 {
        let question = [&[code], text.as_bytes()].concat();
        let status = user
            .unary("/interop.Test/Status", Request::new(question.clone()))
            .await;
        let status = status.expect_err("no message");
        let wanted = (Code::from(i32::from(code)), text);
        assert_eq!((status.code(), status.message()), wanted);
        let question = Request::new(tokio_stream::once(question));
        let answers = user.call("/interop.Test/Late", question).await;
        let mut answers = answers.expect("a stream").into_inner();
        let first = answers.message().await.expect("a message");
        assert_eq!(first, Some(b"first".to_vec()));
        let status = answers.message().await.expect_err("the end");
        assert_eq!((status.code(), status.message()), wanted);
    }
    for unknown in ["/interop.Test/Unknown", "/interop.Unknown/Echo"] {
        let status = user.unary(unknown, Request::new(vec![])).await;
        assert_eq!(status.expect_err("unknown").code(), Code::Unimplemented);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_passes_both_ways_as_text_and_as_bytes_in_fields_and_in_trailers() {
    let mut user = User::start().await;
    let bytes = MetadataValue::from_bytes(&[0xab, 0, 0xff, 0x0a]);
    let with = |message: Message| {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert("x-text", MetadataValue::from_static("some text"));
        metadata.insert_bin("x-bytes-bin", bytes.clone());
        request
    };
    let answer = user
        .unary("/interop.Test/Echo", with(vec![1]))
        .await
        .expect("an answer");
    let status = user
        .unary("/interop.Test/Status", with(vec![5]))
        .await
        .expect_err("not found");
    for metadata in [answer.metadata(), status.metadata()] {
        assert_eq!(metadata.get("x-text").expect("text"), "some text");
        assert_eq!(metadata.get_bin("x-bytes-bin").expect("bytes"), &bytes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_ends_a_call_and_whoever_cancels_leaves_nothing_behind() {
    let mut user = User::start().await;
    let mut request = Request::new(vec![1]);
    request.set_timeout(Duration::from_millis(50));
    let status = user.unary("/interop.Test/Hang", request).await;
    let code = status.expect_err("no answer").code();
    // Whoever notices first: the user's own clock says that it cancelled.
    assert!(matches!(code, Code::DeadlineExceeded | Code::Cancelled));
    // Before an answer, and after the first.
    let (ask, questions) = mpsc::channel(1);
    let hanging = user.call("/interop.Test/Hang", Request::new(tokio_stream::pending()));
    assert!(
        tokio::time::timeout(Duration::from_millis(50), hanging)
            .await
            .is_err()
    );
    let questions = Request::new(ReceiverStream::new(questions));
    let answers = user.call("/interop.Test/Echo", questions).await;
    let mut answers = answers.expect("a stream").into_inner();
    ask.send(vec![7]).await.expect("open");
    assert_eq!(answers.message().await.expect("a message"), Some(vec![7]));
    drop((answers, ask));
    let metrics = user.world.settled().await;
    assert!(metrics.sum("sim_proxy_ejections_total", &[]) < 0.5);
    let answer = user
        .unary("/interop.Test/Echo", Request::new(vec![9]))
        .await;
    assert_eq!(answer.expect("an answer").into_inner(), [9]);
}
