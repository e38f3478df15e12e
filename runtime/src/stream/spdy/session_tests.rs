use tokio::io::DuplexStream;

use super::*;

/// The client's side, frame by frame.
struct Client {
    socket: DuplexStream,
    parser: Parser,
    input: BytesMut,
    deflater: Deflater,
}

impl Client {
    async fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.unwrap();
    }

    async fn open(&mut self, stream: u32, kind: &str) {
        let headers = Headers::new(&[("streamType", kind)]);
        let frame = frame::syn_stream(stream, false, &headers, &mut self.deflater).unwrap();
        self.send(&frame).await;
    }

    async fn data(&mut self, stream: u32, bytes: &[u8], fin: bool) {
        self.send(&frame::data_head(stream, bytes.len(), fin)).await;
        self.send(bytes).await;
    }

    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.parser.next(&mut self.input).unwrap() {
                return Some(frame);
            }
            if self.socket.read_buf(&mut self.input).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// So many bytes of a stream.
    async fn bytes(&mut self, stream: u32, count: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < count {
            match self.next().await.unwrap() {
                Frame::Data { stream: of, bytes, .. } if of == stream => all.extend(bytes),
                other => panic!("{other:?}"),
            }
        }
        all
    }
}

fn connect() -> (Client, Session) {
    let (socket, theirs) = tokio::io::duplex(1 << 20);
    let (reader, writer) = tokio::io::split(theirs);
    let activity = Arc::new(Activity::new());
    let probe = Probe::new(None);
    let session =
        Session::start(Box::new(reader), Box::new(writer), Bytes::new(), probe, activity).unwrap();
    let (parser, input) = (Parser::default(), BytesMut::new());
    (Client { socket, parser, input, deflater: Deflater::new().unwrap() }, session)
}

#[tokio::test]
async fn a_stream_is_accepted_carries_both_ways_and_ends_by_halves() {
    let (mut client, mut session) = connect();
    client.open(1, "stdin").await;
    client.data(1, b"to the server", true).await;
    let mut stream = session.accept().await.unwrap();
    assert_eq!((stream.id, stream.headers.get("streamType")), (1, Some("stdin")));
    assert_eq!(stream.input.next().await.unwrap(), "to the server");
    assert_eq!(stream.input.next().await, None);
    stream.output.send_bytes(b"to the client").await.unwrap();
    stream.output.finish().await;
    assert_eq!(client.next().await, Some(Frame::SynReply { stream: 1, fin: false }));
    let bytes = Bytes::from_static(b"to the client");
    assert_eq!(client.next().await, Some(Frame::Data { stream: 1, bytes, fin: false }));
    assert_eq!(
        client.next().await,
        Some(Frame::Data { stream: 1, bytes: Bytes::new(), fin: true })
    );
    assert!(session.shared.streams().is_empty());
    let closing = tokio::spawn(session.close());
    assert_eq!(client.next().await, Some(Frame::GoAway));
    assert_eq!(client.next().await, None);
    drop(client);
    closing.await.unwrap();
}

#[tokio::test]
async fn a_client_without_flow_control_is_sent_all_there_is() {
    let (mut client, mut session) = connect();
    client.open(1, "stdout").await;
    let mut stream = session.accept().await.unwrap();
    stream.output.send(vec![7; 300_001]).await.unwrap();
    client.next().await.unwrap();
    assert_eq!(client.bytes(1, 300_000).await.len(), 300_000);
}

#[tokio::test]
async fn a_client_with_flow_control_is_sent_what_it_takes() {
    let (mut client, mut session) = connect();
    let settings = [0x80, 3, 0, 4, 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0x40, 0];
    client.send(&settings).await;
    client.open(1, "stdout").await;
    let mut stream = session.accept().await.unwrap();
    let sending = tokio::spawn(async move {
        stream.output.send(vec![7; 100_001]).await.unwrap();
        stream
    });
    client.next().await.unwrap();
    assert_eq!(client.bytes(1, 16384).await.len(), 16384);
    client.send(&frame::ping(1)).await;
    assert_eq!(client.next().await, Some(Frame::Ping(1)), "no more data before this");
    client.send(&frame::window_update(1, 90_000)).await;
    // The window of all streams together holds it up now.
    assert_eq!(client.bytes(1, 65536 - 16384).await.len(), 65536 - 16384);
    client.send(&frame::window_update(0, 90_000)).await;
    assert_eq!(client.bytes(1, 100_000 - 65536).await.len(), 100_000 - 65536);
    // What it sends is credited once half a window was taken.
    let mut stream = sending.await.unwrap();
    client.data(1, &vec![1; 40_000], false).await;
    let mut taken = 0;
    while taken < 40_000 {
        taken += stream.input.next().await.unwrap().len();
    }
    let credits = [client.next().await.unwrap(), client.next().await.unwrap()];
    let delta = |frame: &Frame| match frame {
        Frame::WindowUpdate { stream, delta } => (*stream, *delta),
        other => panic!("{other:?}"),
    };
    let [(of, one), (all, same)] = [delta(&credits[0]), delta(&credits[1])];
    assert_eq!((of, all, one), (1, 0, same));
    assert!(one >= 32 << 10);
}

#[tokio::test]
async fn a_slow_reader_of_a_stream_holds_up_its_sender() {
    let (mut client, mut session) = connect();
    client.open(1, "stdin").await;
    let mut stream = session.accept().await.unwrap();
    let piece = vec![1; 64 << 10];
    let flood = async {
        loop {
            client.data(1, &piece, false).await;
        }
    };
    // What fits: the pipe of this test, and the queue.
    tokio::time::timeout(Duration::from_secs(2), flood).await.unwrap_err();
    let mut taken = 0;
    while let Ok(Some(piece)) =
        tokio::time::timeout(Duration::from_millis(200), stream.input.next()).await
    {
        taken += piece.len();
    }
    assert!((1 << 20..8 << 20).contains(&taken), "{taken}");
}

#[tokio::test]
async fn pings_resets_and_bad_numbers() {
    let (mut client, mut session) = connect();
    client.send(&frame::ping(2)).await;
    client.send(&frame::ping(7)).await;
    assert_eq!(client.next().await, Some(Frame::Ping(7)));
    client.open(3, "data").await;
    let mut stream = session.accept().await.unwrap();
    assert_eq!(client.next().await, Some(Frame::SynReply { stream: 3, fin: false }));
    client.send(&frame::rst_stream(3, Reset::Cancel)).await;
    assert_eq!(stream.input.next().await, None);
    assert_eq!(stream.output.send_bytes(b"x").await, Err(Gone));
    client.open(5, "data").await;
    drop(session.accept().await.unwrap());
    assert_eq!(client.next().await, Some(Frame::SynReply { stream: 5, fin: false }));
    assert_eq!(client.next().await, Some(Frame::RstStream { stream: 5, status: 5 }));
    let mut presence = session.presence();
    client.open(4, "data").await;
    presence.ended().await;
    assert!(session.accept().await.is_none());
}

#[tokio::test]
async fn a_client_that_goes_is_told_of() {
    let (mut client, mut session) = connect();
    client.open(1, "stdout").await;
    let mut stream = session.accept().await.unwrap();
    drop(client);
    session.presence().ended().await;
    assert_eq!(stream.input.next().await, None);
    assert_eq!(stream.output.send_bytes(b"x").await, Err(Gone));
}
