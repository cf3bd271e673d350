//! A real Redis server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// `redis-server` on a free port, without files; killed when it is dropped.
pub(crate) struct Redis {
    port: u16,
    child: Option<Child>,
}

impl Redis {
    pub(crate) fn start() -> Self {
        let mut redis = Self { port: free_port(), child: None };
        redis.restart();
        redis
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Kills the server without closing its connections first.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts the server again on the same port, empty.
    pub(crate) fn restart(&mut self) {
        let port = self.port.to_string();
        let mut command = Command::new("redis-server");
        command.args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.unwrap_or_else(|error| {
            panic!("redis-server: {error}: `make setup` installs it, or says what to install")
        });
        self.child = Some(child);
        let started = Instant::now();
        while !TcpStream::connect(("127.0.0.1", self.port)).is_ok_and(|_| self.call("PING").starts_with('+'))
        {
            assert!(started.elapsed() < Duration::from_secs(20), "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends one command, as a user would type it, and returns the first bytes of the reply.
    pub(crate) fn call(&self, command: &str) -> String {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return String::new() };
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(format!("{command}\r\n").as_bytes()).unwrap();
        let mut bytes = [0; 65536];
        let count = stream.read(&mut bytes).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    }

    /// Returns the value of a key.
    pub(crate) fn value(&self, key: &str) -> Vec<u8> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        (&stream).write_all(format!("GET {key}\r\n").as_bytes()).unwrap();
        let (mut reader, mut length) = (BufReader::new(stream), String::new());
        reader.read_line(&mut length).unwrap();
        let mut value = vec![0; length.trim_start_matches('$').trim().parse().unwrap()];
        reader.read_exact(&mut value).unwrap();
        value
    }

    /// Replaces the value of a key.
    pub(crate) fn set_value(&self, key: &str, value: &[u8]) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let head = format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n", key.len(), value.len());
        stream.write_all(&[head.as_bytes(), value, b"\r\n"].concat()).unwrap();
        let mut answer = [0; 3];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"+OK");
    }

    /// Returns every key.
    pub(crate) fn keys(&self) -> Vec<String> {
        let answer = self.call("KEYS *");
        answer.lines().filter(|line| !line.starts_with(['*', '$'])).map(str::to_owned).collect()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns a port that is free at this moment.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}
