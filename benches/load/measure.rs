//! The measurements.

use std::time::Duration;

use crate::Report;
use crate::client::Client;
use crate::servers::{Program, no_op, root, with_instant_model};
use crate::wrk;

/// The number of rounds. Rounds of the two kinds of request alternate, so that other load on the machine
/// affects both.
const ROUNDS: usize = 20;
/// The number of requests in a round.
const ROUND: usize = 100;
/// The number of servers, of which the median counts.
const SERVERS: usize = 7;
/// The number of first requests, which meet cold caches and connections and do not count.
const WARM_UP: usize = 200;

/// Sorted latencies.
pub(crate) struct Latencies(Vec<Duration>);

impl Latencies {
    pub(crate) fn of(mut values: Vec<Duration>) -> Self {
        values.sort_unstable();
        Self(values)
    }

    /// Returns a quantile in milliseconds; 0 where there are none.
    pub(crate) fn ms(&self, quantile: f64) -> f64 {
        let index = (self.0.len().saturating_sub(1) as f64 * quantile).round() as usize;
        self.0.get(index).map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
    }
}

/// Returns a grey PNG of 32 × 32 pixels that differs for every number.
fn small_png(number: u64) -> Vec<u8> {
    let mut pixels = vec![0; 32 * 33];
    for (index, byte) in number.to_le_bytes().into_iter().enumerate() {
        // Each row begins with the number of its filter: 0 for none.
        pixels[1 + index] = byte;
    }
    let mut stream = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut stream, &pixels).expect("memory takes it");
    let pixels = stream.finish().expect("memory takes it");
    let chunk = |kind: &[u8; 4], data: &[u8]| {
        let mut checksum = flate2::Crc::new();
        checksum.update(kind);
        checksum.update(data);
        let length = u32::try_from(data.len()).expect("it is small").to_be_bytes();
        [&length, &kind[..], data, &checksum.sum().to_be_bytes()].concat()
    };
    let header = [&32_u32.to_be_bytes()[..], &32_u32.to_be_bytes(), &[8, 0, 0, 0, 0]].concat();
    [&b"\x89PNG\r\n\x1a\n"[..], &chunk(b"IHDR", &header), &chunk(b"IDAT", &pixels), &chunk(b"IEND", &[])]
        .concat()
}

/// Returns a photograph of 5 KB, padded by a comment.
fn photograph_5kb() -> Vec<u8> {
    let jpeg = std::fs::read(root().join("assets/road-work-far.jpg")).expect("the repository has its assets");
    let comment = vec![b'x'; 5120 - jpeg.len() - 4];
    let length = u16::try_from(comment.len() + 2).expect("it is short").to_be_bytes();
    [&jpeg[..2], &[0xff, 0xfe], &length, &comment, &jpeg[2..]].concat()
}

/// Measures the whole path of an uncached image, with a model that takes no time, minus a route that does
/// nothing.
///
/// Each run has servers of its own, because the placement of their threads by the operating system decides
/// between two levels of latency.
pub(crate) fn router_latency(report: &mut Report) {
    let mut runs: Vec<[Latencies; 2]> = (0..SERVERS).map(|_| latencies_of_a_server(report)).collect();
    for (what, key, quantile, aim) in [
        ("router-added latency, p50", "router_added_ms_p50", 0.5, "at most 0.3 ms, goal 0.2"),
        ("router-added latency, p99", "router_added_ms_p99", 0.99, "at most 1.5 ms, goal 1"),
    ] {
        let added = |[full, no_op]: &[Latencies; 2]| full.ms(quantile) - no_op.ms(quantile);
        runs.sort_by(|left, right| added(left).total_cmp(&added(right)));
        let [full, no_op] = &runs[SERVERS / 2];
        let all: Vec<String> = runs.iter().map(|run| format!("{:.2}", added(run))).collect();
        let beside = format!(
            "median of {SERVERS} servers ({}): {:.3} ms - {:.3} ms without; {aim}",
            all.join(", "),
            full.ms(quantile),
            no_op.ms(quantile)
        );
        report.add(what, key, added(&runs[SERVERS / 2]), "ms", beside);
    }
}

/// Returns the latencies of the whole path, and of the route that does nothing.
fn latencies_of_a_server(report: &mut Report) -> [Latencies; 2] {
    let path = "/v1/tasks/bench/classify";
    let address = with_instant_model().to_string();
    let (mut watcher, mut full) = (Client::connect(&address), Client::connect(&address));
    let mut peer = Client::connect(&no_op().to_string());
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let mut number = 0;
    for round in 0..ROUNDS + WARM_UP / ROUND {
        let is_warm = round >= WARM_UP / ROUND;
        for _ in 0..ROUND {
            number += 1;
            let (status, latency) = full.post(path, "", &small_png(number));
            assert_eq!(status, 200);
            ours.extend(is_warm.then_some(latency));
        }
        for _ in 0..ROUND {
            number += 1;
            let (_, latency) = peer.post(path, "", &small_png(number));
            theirs.extend(is_warm.then_some(latency));
        }
    }
    let requests = (ROUNDS * ROUND + WARM_UP) as f64;
    for (phase, seconds) in PHASES.iter().zip(phases(&mut watcher)) {
        report.json.insert(format!("router_{phase}_ms_mean"), (seconds * 1e3 / requests).into());
    }
    [Latencies::of(ours), Latencies::of(theirs)]
}

/// Measures cached verdicts: the whole path through router and cache actor, and the memory after a million of
/// them.
pub(crate) fn cached_verdicts(report: &mut Report) {
    const CONNECTIONS: usize = 32;
    const SECONDS: usize = 5;
    let image = photograph_5kb();
    let peer = no_op();
    let program = Program::start(peer);
    let idle = program.megabytes();
    let url = |address: &str| format!("http://{address}/v1/tasks/roadwork/classify");
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let mut total = 0.0;
    for _ in 0..5 {
        for (address, rates) in [(&program.address, &mut ours), (&peer.to_string(), &mut theirs)] {
            let found = wrk::post(&url(address), &image, CONNECTIONS, SECONDS);
            assert_eq!(found.errors, 0.0, "every answer is a verdict");
            rates.push(found.per_second);
            if *address == program.address {
                total += found.requests;
            }
        }
    }
    let median = |rates: &mut Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        (rates[rates.len() / 2], rates[rates.len() - 1])
    };
    let ((ours, best), (theirs, _)) = (median(&mut ours), median(&mut theirs));
    let ratio = ours / theirs;
    let beside =
        format!("{theirs:.0}/s of a route that does nothing: {ratio:.2} of it; at least 25,000, goal 35,000");
    report.add("verdicts out of the cache, median of 5 runs", "cached_per_second", ours, "/s", beside);
    report.add("the same, best run", "cached_per_second_best", best, "/s", "");
    report.json.insert("no_op_per_second".to_owned(), theirs.into());
    while total < 1e6 {
        total += wrk::post(&url(&program.address), &image, CONNECTIONS, SECONDS).requests;
    }
    report.add("resident memory, idle", "resident_mb_idle", idle, "MB", "after loading two nano models");
    let after = program.megabytes();
    report.add(
        "resident memory, later",
        "resident_mb_after",
        after,
        "MB",
        format!("after {:.2} million requests", total / 1e6),
    );
}

/// Measures two nano models on uncached images, and the time of each phase.
pub(crate) fn nano_models(report: &mut Report) {
    const REQUESTS: usize = 300;
    let program = Program::start(no_op());
    let mut client = Client::connect(&program.address);
    let names = [
        "camera.png",
        "caution.jpg",
        "chelsea.png",
        "coffee.png",
        "road-work-clear.jpg",
        "road-work-dusk.jpg",
    ];
    let images = names.map(|name| std::fs::read(root().join("assets").join(name)).expect("an example"));
    let mut ask = |count: usize| -> Vec<Duration> {
        let path = "/v1/tasks/roadwork/classify";
        (0..count)
            .map(|index| client.post(path, "cache-control: no-cache\r\n", &images[index % images.len()]).1)
            .collect()
    };
    ask(30);
    let mut watcher = Client::connect(&program.address);
    let before = phases(&mut watcher);
    let latencies = Latencies::of(ask(REQUESTS));
    let after = phases(&mut watcher);
    let beside = "six examples in turn, concurrency 1, no cache; a third of them reach stage 2";
    report.add("nano ensemble over HTTP, p50", "nano_ms_p50", latencies.ms(0.5), "ms", beside);
    report.add("nano ensemble over HTTP, p99", "nano_ms_p99", latencies.ms(0.99), "ms", beside);
    for ((phase, before), after) in PHASES.iter().zip(before).zip(after) {
        let ms = (after - before) * 1e3 / REQUESTS as f64;
        report.json.insert(format!("nano_{phase}_ms_mean"), ms.into());
        let value = format!("{ms:.3} ms");
        report.rows.push(crate::Row {
            what: "  of which, mean".to_owned(),
            value,
            beside: (*phase).to_owned(),
        });
    }
}

/// Returns the seconds that have been spent in each phase.
fn phases(watcher: &mut Client) -> [f64; PHASES.len()] {
    let metrics = watcher.get("/metrics");
    PHASES.map(|phase| sum(&metrics, phase))
}

const PHASES: [&str; 4] = ["decode", "preprocess", "queue", "model"];

fn sum(metrics: &str, phase: &str) -> f64 {
    let name = format!("concord_phase_seconds_sum{{phase=\"{phase}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or(0.0)
}
