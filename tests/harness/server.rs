//! A real server of the real program, and a client for it.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest::blocking::{Client, RequestBuilder, Response};
use serde_json::Value;

use super::{command, root};

/// The time after which a wait fails: longer than anything takes on a machine that is busy with other things
/// as well.
const PATIENCE: Duration = Duration::from_secs(60);

/// `concord serve` on a free port; killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) client: Endpoint,
    log: Arc<Mutex<String>>,
}

/// A client of a server.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    pub(crate) address: String,
    http: Client,
}

/// A response of an endpoint.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: Value,
}

impl Server {
    pub(crate) fn start(ensemble: &Path) -> Self {
        Self::start_with(ensemble, &[])
    }

    /// Starts the program with environment variables.
    pub(crate) fn start_with(ensemble: &Path, variables: &[(&str, &str)]) -> Self {
        let mut command = command(&["serve", "--listen", "127.0.0.1:0", "--ensemble"]);
        command.arg(ensemble).envs(variables.iter().copied());
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = child.stderr.take().unwrap();
        let shared = Arc::clone(&log);
        std::thread::spawn(move || keep_log(stderr, &shared));
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.strip_prefix("ready at ").and_then(|rest| rest.split_whitespace().next());
        let address =
            address.unwrap_or_else(|| panic!("the server did not start: {line:?} {}", log.lock().unwrap()));
        Self { child, client: Endpoint::new(address), log }
    }

    /// Returns what the program has written to standard error.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Returns the peak of the program's resident memory in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    /// Waits for the end of the program, and returns its exit status.
    pub(crate) fn wait(&mut self) -> i32 {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the server does not end: {}", self.log());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
    }
}

fn keep_log(mut stderr: ChildStderr, log: &Mutex<String>) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = stderr.read(&mut bytes) {
        log.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
}

impl Endpoint {
    pub(crate) fn new(address: &str) -> Self {
        // Whichever test comes first installs it.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let http = Client::builder().timeout(PATIENCE).build().unwrap();
        Self { address: address.to_owned(), http }
    }

    /// Classifies an image in the body.
    pub(crate) fn classify(&self, task: &str, image: &[u8]) -> Answer {
        self.send(self.post(task).body(image.to_vec()))
    }

    /// Classifies an image without the cache.
    pub(crate) fn classify_fresh(&self, task: &str, image: &[u8]) -> Answer {
        self.send(self.post(task).header("cache-control", "no-cache").body(image.to_vec()))
    }

    pub(crate) fn post(&self, task: &str) -> RequestBuilder {
        self.http.post(format!("{}/v1/tasks/{task}/classify", self.address))
    }

    /// Returns the HTTP client, for requests of other kinds.
    pub(crate) fn http(&self) -> &Client {
        &self.http
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send(self.http.get(format!("{}{path}", self.address)))
    }

    pub(crate) fn send(&self, request: RequestBuilder) -> Answer {
        Answer::of(request.send().unwrap_or_else(|error| panic!("no answer: {error:?}")))
    }

    /// Returns the sum of the metric's samples whose labels contain all of `labels`, such as
    /// `model="dinov3"`.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.http.get(format!("{}/metrics", self.address)).send().unwrap().text().unwrap();
        let sample = |line: &&str| {
            line.split(['{', ' ']).next() == Some(name) && labels.iter().all(|label| line.contains(label))
        };
        text.lines().filter(sample).map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// Returns the number of images that have run through any model.
    pub(crate) fn forwards(&self) -> f64 {
        self.metric("concord_forwards_total", &[])
    }

    /// Waits until `is_so` holds; `what` is the condition in words.
    pub(crate) fn wait_until(&self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let started = Instant::now();
        while !is_so(self) {
            assert!(started.elapsed() < PATIENCE, "waited in vain until {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Answer {
    fn of(response: Response) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().unwrap();
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Self { status, headers, body }
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}: {self:?}")).to_str().unwrap()
    }

    /// Returns the label of the verdict and the cache outcome.
    pub(crate) fn label_and_cache(&self) -> (&str, &str) {
        assert_eq!(self.status, 200, "{self:?}");
        (self.body["label"].as_str().unwrap(), self.body["cache"].as_str().unwrap())
    }
}

/// Returns a real photograph whose bytes differ for every number: the number is a comment in the file.
pub(crate) fn photograph(number: usize) -> Vec<u8> {
    let jpeg = std::fs::read(root().join("assets/road-work-far.jpg")).unwrap();
    let comment = format!("{number:010}");
    let length = u16::try_from(comment.len() + 2).unwrap().to_be_bytes();
    let (start, rest) = jpeg.split_at(2);
    [start, &[0xff, 0xfe], &length, comment.as_bytes(), rest].concat()
}

/// The status of a response and the time that it took, or the reason why there was none.
pub(crate) type Outcome = Result<(u16, Duration), String>;

/// A load of several threads that classify until it is stopped, each photograph once.
pub(crate) struct Load {
    stop: Arc<std::sync::atomic::AtomicBool>,
    threads: Vec<std::thread::JoinHandle<Vec<Outcome>>>,
}

impl Load {
    pub(crate) fn start(endpoint: &Endpoint, threads: usize) -> Self {
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let start = |thread: usize| {
            let (endpoint, stop) = (endpoint.clone(), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut outcomes = Vec::new();
                let mut number = thread * 1_000_000;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    number += 1;
                    let started = Instant::now();
                    let sent = endpoint.post("roadwork").body(photograph(number)).send();
                    // The server does not listen any more: there was no connection, so that nothing was
                    // accepted.
                    if sent.as_ref().is_err_and(reqwest::Error::is_connect) {
                        break;
                    }
                    // An incomplete response does not count.
                    let read = sent.and_then(|response| Ok((response.status().as_u16(), response.bytes()?)));
                    outcomes.push(
                        read.map(|(status, _)| (status, started.elapsed()))
                            .map_err(|error| format!("{error:?}")),
                    );
                }
                outcomes
            })
        };
        let threads = (0..threads).map(start).collect();
        Self { stop, threads }
    }

    /// Stops the load, and returns the outcome of every request.
    pub(crate) fn finish(self) -> Vec<Outcome> {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    }
}
