//! A server whose responses a test writes: it stands in for servers that cannot run here, in their documented
//! formats, and for faulty ones.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

/// The response to a request.
#[derive(Debug, Clone)]
pub(crate) enum Action {
    /// A status and a body.
    Answer(u16, Value),
    /// A status, an empty object, and an additional header.
    AnswerWith(u16, &'static str, &'static str),
    /// No response for this long, and then the end of the connection.
    Silence(Duration),
    /// The beginning of a response, and then the end of the connection.
    HalfAnswer,
}

/// A request as it was received.
#[derive(Debug, Clone)]
pub(crate) struct ReceivedRequest {
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Value,
}

type Script = dyn Fn(&ReceivedRequest) -> Action + Send + Sync;

/// A server that listens for as long as the test program runs.
pub(crate) struct ScriptedServer {
    pub(crate) address: String,
    requests: Arc<Mutex<Vec<ReceivedRequest>>>,
    script: Arc<Mutex<Arc<Script>>>,
}

impl ScriptedServer {
    pub(crate) fn start(script: impl Fn(&ReceivedRequest) -> Action + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = format!("http://{}/v1", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let script: Arc<Mutex<Arc<Script>>> = Arc::new(Mutex::new(Arc::new(script)));
        let (all, current) = (Arc::clone(&requests), Arc::clone(&script));
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let (all, current) = (Arc::clone(&all), Arc::clone(&current));
                std::thread::spawn(move || serve(connection, &all, &current));
            }
        });
        Self { address, requests, script }
    }

    /// Uses `script` for the requests from now on.
    pub(crate) fn act(&self, script: impl Fn(&ReceivedRequest) -> Action + Send + Sync + 'static) {
        *self.script.lock().unwrap() = Arc::new(script);
    }

    /// Returns every request so far.
    pub(crate) fn requests(&self) -> Vec<ReceivedRequest> {
        self.requests.lock().unwrap().clone()
    }
}

fn serve(connection: TcpStream, requests: &Mutex<Vec<ReceivedRequest>>, script: &Mutex<Arc<Script>>) {
    let mut reader = BufReader::new(connection);
    while let Some(request) = read(&mut reader) {
        requests.lock().unwrap().push(request.clone());
        let script = Arc::clone(&script.lock().unwrap());
        let stream = reader.get_mut();
        let sent = match script(&request) {
            Action::Answer(status, body) => respond(stream, status, "x-nothing: 1", &body.to_string()),
            Action::AnswerWith(status, name, value) => {
                respond(stream, status, &format!("{name}: {value}"), "{}")
            }
            Action::Silence(duration) => {
                std::thread::sleep(duration);
                return;
            }
            Action::HalfAnswer => {
                let _sent =
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{\"choices\": [");
                return;
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

fn respond(stream: &mut TcpStream, status: u16, header: &str, body: &str) -> std::io::Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status} x\r\ncontent-type: application/json\r\n{header}\r\n");
    stream.write_all(format!("{head}content-length: {length}\r\n\r\n{body}").as_bytes())
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<ReceivedRequest> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let mut body = vec![0; headers.get("content-length")?.parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    Some(ReceivedRequest { path, headers, body: serde_json::from_slice(&body).unwrap_or_default() })
}
