//! The measured servers, and their peers.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};

use actix_web::{App, HttpResponse, HttpServer, web};
use concord::config::Ensemble;
use concord::serve::{ServeOptions, serve};
use concord::telemetry::{LogCounters, Sampling};
use tokio::sync::Notify;

use crate::instant::Instant;

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Starts the real server in this process, with a task of one stage and one model that takes no
/// time. The snapshot is not loaded, but has to exist.
pub(crate) fn with_instant_model() -> SocketAddr {
    let text = "
        [models.instant]
        architecture = \"siglip2\"
        snapshot = \"models/tests/fixtures/parity/siglip2/snapshot\"
        device = \"cpu\"
        [tasks.bench]
        question = \"?\"
        labels = [\"no\", \"yes\"]
        stages = [{ models = [\"instant\"], accept = { confidence = 0.9 } }]";
    let ensemble = Ensemble::parse(text, "bench.toml", root(), []).expect("the configuration is valid");
    let (ready, address) = mpsc::channel();
    std::thread::spawn(move || {
        let options = ServeOptions {
            ensemble,
            listen: Some("127.0.0.1:0".to_owned()),
            file: None,
            sampling: Sampling::none(),
            log_counters: LogCounters::default(),
            loader: Arc::new(|_: &str, _: &_, _: &_| Ok(Instant::boxed())),
            stop: Arc::new(Notify::new()),
        };
        let on_ready = move |address, _: &_| ready.send(address).expect("the bench waits");
        actix::System::new().block_on(serve(options, on_ready)).expect("the server starts");
    });
    address.recv().expect("the server starts")
}

/// Starts the peer: an actix-web route that reads the body and returns as many bytes as a verdict has.
pub(crate) fn no_op() -> SocketAddr {
    let (bound, address) = mpsc::channel();
    std::thread::spawn(move || {
        actix::System::new().block_on(async move {
            let answer = async |body: web::Bytes| {
                HttpResponse::Ok().content_type("application/json").body(vec![b' '; 700 + body.len() % 2])
            };
            let app = move || {
                let limit = web::PayloadConfig::new(1 << 20);
                App::new().app_data(limit).default_service(web::to(answer))
            };
            let server = HttpServer::new(app).disable_signals().bind(("127.0.0.1", 0)).expect("a free port");
            bound.send(server.addrs()[0]).expect("the bench waits");
            server.run().await.expect("the server runs");
        });
    });
    address.recv().expect("the server starts")
}

/// The program itself.
pub(crate) struct Program {
    child: Child,
    pub(crate) address: String,
}

impl Program {
    /// Starts it with the two models of the tests and one trace in a hundred exported.
    pub(crate) fn start(otlp: SocketAddr) -> Self {
        let endpoint = format!("http://{otlp}");
        let variables =
            [("CONCORD__TELEMETRY__OTLP_ENDPOINT", &*endpoint), ("CONCORD__TELEMETRY__SAMPLE_RATIO", "0.01")];
        Self::with("tests/fixtures/ensemble.toml", &variables)
    }

    /// Starts it with the shipped ensemble.
    pub(crate) fn shipped(variables: &[(&str, &str)]) -> Self {
        Self::with("ensemble.toml", variables)
    }

    fn with(ensemble: &str, variables: &[(&str, &str)]) -> Self {
        let binary = PathBuf::from(env!("CARGO_BIN_EXE_concord"));
        let mut child = Command::new(binary)
            .args(["serve", "--listen", "127.0.0.1:0", "--ensemble"])
            .arg(root().join(ensemble))
            .envs(variables.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).expect("the program says where it listens");
        let address = line.split("http://").nth(1).and_then(|rest| rest.split(' ').next());
        Self { address: address.expect("the program is ready").to_owned(), child }
    }

    /// Returns the resident memory in MiB.
    pub(crate) fn megabytes(&self) -> f64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("the program runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("Linux says it");
        line.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).expect("a number") / 1024.0
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}
