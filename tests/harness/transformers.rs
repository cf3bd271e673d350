//! The server of Hugging Face transformers with a nano snapshot, which is one that this project did not
//! write.

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::redis::free_port;
use super::{missing, root};

/// The time that the start may take: it imports torch first.
const START_TIMEOUT: Duration = Duration::from_secs(180);

/// `transformers serve` on a free port; killed when it is dropped.
pub(crate) struct Transformers {
    port: u16,
    child: Child,
    log: tempfile::NamedTempFile,
}

impl Transformers {
    /// Starts the server. Returns `None` and says so if `deploy/reference.py` has not installed it.
    pub(crate) fn start(snapshot: &str) -> Option<Self> {
        let program = root().join(".reference/bin/transformers");
        if !root().join(".reference/complete").exists() {
            missing("transformers is not in .reference: `make reference` puts it there");
            return None;
        }
        let (port, log) = (free_port(), tempfile::NamedTempFile::new().unwrap());
        let mut command = Command::new(program);
        command.arg("serve").arg(root().join(snapshot)).args(["--port", &port.to_string()]);
        command.args(["--device", "cpu", "--dtype", "float32"]);
        command.envs([("HF_HUB_OFFLINE", "1"), ("OMP_NUM_THREADS", "1")]);
        let child = command.stdout(Stdio::null()).stderr(log.reopen().unwrap()).spawn().unwrap();
        let mut server = Self { port, child, log };
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = server.child.try_wait().unwrap();
            let log = || std::fs::read_to_string(server.log.path()).unwrap();
            assert!(ended.is_none(), "transformers serve ended: {}", log());
            assert!(started.elapsed() < START_TIMEOUT, "transformers serve does not answer: {}", log());
            std::thread::sleep(Duration::from_millis(100));
        }
        Some(server)
    }

    /// Returns the `base_url` for clients.
    pub(crate) fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }
}

impl Drop for Transformers {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
    }
}
