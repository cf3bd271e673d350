//! Two ways in which new images arrive: an open loop, whose clients do not wait for each other's responses, and a
//! closed loop of clients that ask again when they have their response, or when `Retry-After` has passed. All on
//! one thread, because it shares the cores with the server.

use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::task::{LocalSet, spawn_local};

/// A response that never came, as a status.
pub(crate) const NONE: u16 = 0;

/// The destination of a load, and the images for it.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) address: String,
    pub(crate) path: &'static str,
    /// Returns an image that differs for every number.
    pub(crate) image: Rc<dyn Fn(u64) -> Vec<u8>>,
}

/// The response to one request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) status: u16,
    pub(crate) latency: Duration,
    /// The time from the beginning of the load to the response.
    pub(crate) at: Duration,
    retry_after: Duration,
}

/// Sends `per_second` images a second for `time`, whatever comes of them, and returns all outcomes.
pub(crate) fn open_loop(target: &Target, per_second: f64, time: Duration) -> Vec<Outcome> {
    run(async move {
        let started = Instant::now();
        let total = (per_second * time.as_secs_f64()) as u64;
        let idle = Rc::new(std::cell::RefCell::new(Vec::<Connection>::new()));
        let mut requests = Vec::new();
        let mut ticks = tokio::time::interval(Duration::from_millis(1));
        for number in 0..total {
            let due = Duration::from_secs_f64(number as f64 / per_second);
            while started.elapsed() < due {
                ticks.tick().await;
            }
            let (target, idle) = (target.clone(), Rc::clone(&idle));
            requests.push(spawn_local(async move {
                let connection = idle.borrow_mut().pop();
                let (outcome, connection) = ask(&target, connection, number, started).await;
                idle.borrow_mut().extend(connection);
                outcome
            }));
        }
        finish(requests).await
    })
}

/// Keeps `clients` asking for `time`, each for one image after the other, and returns all outcomes.
pub(crate) fn closed_loop(target: &Target, clients: u64, time: Duration) -> Vec<Outcome> {
    run(async move {
        let started = Instant::now();
        let client = |client: u64| {
            let target = target.clone();
            spawn_local(async move {
                let (mut outcomes, mut connection) = (Vec::new(), None);
                let mut number = (client + 1) << 32;
                while started.elapsed() < time {
                    number += 1;
                    let (outcome, kept) = ask(&target, connection, number, started).await;
                    connection = kept;
                    outcomes.push(outcome);
                    tokio::time::sleep(outcome.retry_after).await;
                }
                outcomes
            })
        };
        let outcomes: Vec<Vec<Outcome>> = finish((0..clients).map(client).collect()).await;
        outcomes.concat()
    })
}

fn run<T>(load: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, load)
}

async fn finish<T>(tasks: Vec<tokio::task::JoinHandle<T>>) -> Vec<T> {
    let mut results = Vec::with_capacity(tasks.len());
    for task in tasks {
        results.push(task.await.expect("no client panics"));
    }
    results
}

/// Posts one image and returns the outcome, with the connection where it is kept.
async fn ask(
    target: &Target,
    connection: Option<Connection>,
    number: u64,
    started: Instant,
) -> (Outcome, Option<Connection>) {
    let sent = Instant::now();
    let answer = async {
        let mut connection = match connection {
            Some(connection) => connection,
            None => Connection::open(&target.address).await?,
        };
        let answer = connection.post(target.path, &(target.image)(number)).await?;
        Ok::<_, std::io::Error>((connection, answer))
    };
    let (connection, answer) = match answer.await {
        Ok((connection, answer)) => ((!answer.closes).then_some(connection), answer),
        Err(_) => (None, Answer { status: NONE, retry_after: Duration::ZERO, closes: true }),
    };
    let Answer { status, retry_after, .. } = answer;
    (Outcome { status, latency: sent.elapsed(), at: started.elapsed(), retry_after }, connection)
}

/// The head of a response.
struct Answer {
    status: u16,
    retry_after: Duration,
    closes: bool,
}

/// A connection of a client.
struct Connection {
    stream: TcpStream,
    bytes: Vec<u8>,
}

impl Connection {
    async fn open(address: &str) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, bytes: Vec::with_capacity(4096) })
    }

    async fn post(&mut self, path: &str, image: &[u8]) -> std::io::Result<Answer> {
        let length = image.len();
        let head = format!("POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-length: {length}\r\n\r\n");
        self.stream.write_all(&[head.as_bytes(), image].concat()).await?;
        self.bytes.clear();
        let head = loop {
            self.read().await?;
            if let Some(end) = memchr::memmem::find(&self.bytes, b"\r\n\r\n") {
                break end + 4;
            }
        };
        let text = String::from_utf8_lossy(&self.bytes[..head]).to_ascii_lowercase();
        let header = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let number = |name: &str| header(name).and_then(|value| value.parse::<u64>().ok()).unwrap_or(0);
        let status = text.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(NONE);
        let answer = Answer {
            status,
            retry_after: Duration::from_secs(number("retry-after:")),
            closes: header("connection:") == Some("close"),
        };
        let whole = head + number("content-length:") as usize;
        while self.bytes.len() < whole {
            self.read().await?;
        }
        Ok(answer)
    }

    async fn read(&mut self) -> std::io::Result<()> {
        match self.stream.read_buf(&mut self.bytes).await? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}
