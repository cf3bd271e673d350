//! Measures the shipped ensemble under more new images than it can answer, all of which reach the last stage.

use std::rc::Rc;
use std::time::Duration;

use crate::Report;
use crate::arrivals::{NONE, Outcome, Target, closed_loop, open_loop};
use crate::measure::Latencies;
use crate::servers::{Program, root};

/// The numbers of clients that the peak is looked for with.
const PEAK_CLIENTS: [u64; 3] = [8, 16, 32];
/// The time of a measurement, unless another is asked for.
const TIME: Duration = Duration::from_secs(10);

/// Measures the peak, then an open loop of 10 and 50 times as many images a second, and closed loops of more clients
/// than can be answered in time. `time` is that of each.
pub(crate) fn overload(report: &mut Report, time: Option<Duration>) {
    let time = time.unwrap_or(TIME);
    for (timeout_ms, clients) in [(10_000, 400), (1_500, 600)] {
        let timeout = timeout_ms.to_string();
        let program = Program::shipped(&[("CONCORD__SERVER__REQUEST_TIMEOUT_MS", &timeout)]);
        let target = target(&program.address);
        let peak = PEAK_CLIENTS
            .map(|clients| goodput(&closed_loop(&target(clients), clients, time), time))
            .into_iter()
            .fold(0.0, f64::max);
        let what = format!("new images a second at their peak, timeout {timeout_ms} ms");
        report.add(what, &format!("peak_per_second_{timeout_ms}"), peak, "/s", "closed loop, all stages");
        for times in [10.0, 50.0] {
            let outcomes = open_loop(&target(times as u64 + 1000), peak * times, time);
            add(
                report,
                &format!("open loop, {times} times that"),
                &format!("open_{times}_{timeout_ms}"),
                peak,
                &outcomes,
                time,
            );
        }
        let outcomes = closed_loop(&target(2000), clients, time);
        add(
            report,
            &format!("closed loop, {clients} clients"),
            &format!("closed_{clients}_{timeout_ms}"),
            peak,
            &outcomes,
            time,
        );
    }
}

/// Returns a function that makes the destination for one load: no two loads share images.
fn target(address: &str) -> impl Fn(u64) -> Target {
    let address = address.to_owned();
    let jpeg: Rc<[u8]> = std::fs::read(root().join("assets/road-work-far.jpg")).expect("an asset").into();
    move |load| {
        let jpeg = Rc::clone(&jpeg);
        let image = move |number: u64| {
            let comment = format!("{load:020}{number:020}");
            let length = u16::try_from(comment.len() + 2).expect("it is short").to_be_bytes();
            [&jpeg[..2], &[0xff, 0xfe], &length, comment.as_bytes(), &jpeg[2..]].concat()
        };
        Target { address: address.clone(), path: "/v1/tasks/roadwork/classify", image: Rc::new(image) }
    }
}

/// Returns the verdicts a second within the time of the load.
fn goodput(outcomes: &[Outcome], time: Duration) -> f64 {
    let good = outcomes.iter().filter(|outcome| outcome.status == 200 && outcome.at <= time).count();
    good as f64 / time.as_secs_f64()
}

fn add(report: &mut Report, what: &str, key: &str, peak: f64, outcomes: &[Outcome], time: Duration) {
    let of = |status: u16| outcomes.iter().filter(move |outcome| outcome.status == status);
    let count = |status: u16| of(status).count();
    let latencies = |status: u16| Latencies::of(of(status).map(|outcome| outcome.latency).collect());
    let (accepted, late) = (count(200) + count(504), count(504));
    let ratio = goodput(outcomes, time) / peak;
    let beside = format!(
        "of the peak; accepted {accepted}, of which late {late}; 200 p50 {:.0} ms, p99 {:.0} ms; refused {}, p99 {:.1} ms; lost {}",
        latencies(200).ms(0.5),
        latencies(200).ms(0.99),
        count(429),
        latencies(429).ms(0.99),
        count(NONE),
    );
    report.add(what.to_owned(), &format!("goodput_{key}"), ratio, "", beside);
    report.json.insert(format!("late_share_{key}"), (late as f64 / accepted.max(1) as f64).into());
    report.json.insert(format!("refused_ms_p99_{key}"), latencies(429).ms(0.99).into());
}
