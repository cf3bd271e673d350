//! A client that costs as little as possible: one connection, one request after the other.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// A client with a persistent connection.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
    body: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("the server listens");
        stream.set_nodelay(true).expect("a TCP connection");
        Self { stream: BufReader::new(stream), body: Vec::new() }
    }

    /// Posts `body`, and returns the status of the response and the time that it took.
    pub(crate) fn post(&mut self, path: &str, headers: &str, body: &[u8]) -> (u16, Duration) {
        let length = body.len();
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: bench\r\n{headers}content-length: {length}\r\n\r\n");
        let request = [head.as_bytes(), body].concat();
        let started = Instant::now();
        self.stream.get_mut().write_all(&request).expect("the connection is kept");
        let status = self.read();
        (status, started.elapsed())
    }

    /// Returns the text at `path`.
    pub(crate) fn get(&mut self, path: &str) -> String {
        let head = format!("GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n");
        self.stream.get_mut().write_all(head.as_bytes()).expect("the connection is kept");
        self.read();
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn read(&mut self) -> u16 {
        let (mut status, mut length) = (0, 0);
        let mut line = String::new();
        loop {
            line.clear();
            self.stream.read_line(&mut line).expect("an answer");
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(rest) = line.strip_prefix("http/1.1 ") {
                status = rest[..3].parse().expect("a status");
            } else if let Some(rest) = line.strip_prefix("content-length: ") {
                length = rest.parse().expect("a length");
            } else if line.is_empty() {
                break;
            }
        }
        self.body.resize(length, 0);
        self.stream.read_exact(&mut self.body).expect("the whole answer");
        status
    }
}
