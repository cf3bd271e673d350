//! The load generator wrk, which takes less of the cores that it shares with the server than one in Rust did.

use std::process::Command;

/// The counts of one run.
pub(crate) struct Counts {
    pub(crate) requests: f64,
    pub(crate) per_second: f64,
    pub(crate) errors: f64,
}

/// Posts the same body for `seconds`, over `connections` connections.
pub(crate) fn post(url: &str, body: &[u8], connections: usize, seconds: usize) -> Counts {
    let folder = tempfile::tempdir().expect("a folder");
    let (script, file) = (folder.path().join("post.lua"), folder.path().join("body"));
    std::fs::write(&file, body).expect("the folder is ours");
    let lua = format!(
        "local f = io.open({file:?}, 'rb') wrk.method = 'POST' wrk.body = f:read('*a') f:close()
         function done(s) io.write(string.format('FOUND %d %d %d', s.requests, s.duration,
             s.errors.connect + s.errors.read + s.errors.write + s.errors.status + s.errors.timeout)) end"
    );
    std::fs::write(&script, lua).expect("the folder is ours");
    let output = Command::new("wrk")
        .args(["-t1", &format!("-c{connections}"), &format!("-d{seconds}s"), "-s"])
        .arg(&script)
        .arg(url)
        .output()
        .expect("wrk is installed: apt-get install wrk");
    let text = String::from_utf8_lossy(&output.stdout);
    let found = text.split("FOUND ").nth(1).unwrap_or_else(|| panic!("wrk failed: {text} {output:?}"));
    let numbers: Vec<f64> = found.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    Counts { requests: numbers[0], per_second: numbers[0] / (numbers[1] / 1e6), errors: numbers[2] }
}
