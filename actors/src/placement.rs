//! The placement of replicas on devices: pure, so that it is the same at every start with the same memory
//! free.

use std::collections::BTreeMap;

use concord_models::{DeviceRequest, MemoryEstimate, ModelOptions};
use concord_policy::VoteFailure;

/// A model whose replicas need devices.
#[derive(Debug, Clone)]
pub(crate) struct PlacementRequest<'a> {
    pub(crate) name: &'a str,
    pub(crate) options: &'a ModelOptions,
    pub(crate) device: DeviceRequest,
    /// The estimate for each replica; `None` where its files do not say, which loading will complain about.
    pub(crate) memory: Option<MemoryEstimate>,
}

/// The free bytes of each GPU that may be used, by number; `None` where it is not known.
pub(crate) type Gpus = BTreeMap<usize, Option<u64>>;

/// The devices of each model's replicas by the model's name, as the configuration calls devices.
pub(crate) type Devices<'a> = BTreeMap<&'a str, Vec<String>>;

/// Gives each replica a device.
///
/// Models that name their GPU come first. Then the others, the largest first, and each of their replicas,
/// among the GPUs that have room for it, to the one with the fewest replicas of the same model, since two on
/// one GPU share its time; of several to which the fewest bytes have gone, and then the first.
///
/// # Errors
/// When models do not fit: all of them, with what to change.
pub(crate) fn place_replicas<'a>(
    requests: &[PlacementRequest<'a>],
    gpus: &Gpus,
) -> Result<Devices<'a>, Vec<(String, VoteFailure)>> {
    let mut order: Vec<&PlacementRequest<'a>> = requests.iter().collect();
    let size = |request: &PlacementRequest<'_>| request.memory.map_or(0, |memory| memory.total());
    order.sort_by_key(|request| {
        let is_free = request.device == DeviceRequest::AnyGpu;
        (is_free, std::cmp::Reverse(if is_free { size(request) } else { 0 }), request.name)
    });
    let mut taken: BTreeMap<usize, u64> = gpus.keys().map(|&gpu| (gpu, 0)).collect();
    let mut devices = Devices::new();
    let mut failures = Vec::new();
    for request in order {
        let name = request.name;
        let needed = size(request);
        for replica in 0..request.options.replicas {
            let candidates: Vec<usize> = match request.device {
                DeviceRequest::Cpu => {
                    devices.entry(name).or_default().push("cpu".to_owned());
                    continue;
                }
                DeviceRequest::Gpu(gpu) => vec![gpu],
                DeviceRequest::AnyGpu => taken.keys().copied().collect(),
            };
            let taken_of = |gpu: usize| taken.get(&gpu).copied().unwrap_or(0);
            let has_room = |gpu: &usize| match gpus.get(gpu).copied().flatten() {
                Some(free) => needed <= free.saturating_sub(taken_of(*gpu)),
                None => true,
            };
            let own = devices.get(name).map_or(&[][..], Vec::as_slice);
            let own_on = |gpu: usize| own.iter().filter(|device| **device == cuda(gpu)).count();
            let place = candidates
                .iter()
                .copied()
                .filter(has_room)
                .min_by_key(|&gpu| (own_on(gpu), taken_of(gpu), gpu));
            let Some(gpu) = place else {
                let room =
                    candidates.iter().map(|&gpu| (gpu, gpus.get(&gpu).copied().flatten(), taken_of(gpu)));
                failures.push((name.to_owned(), no_room(request, replica, room)));
                break;
            };
            *taken.entry(gpu).or_default() += needed;
            devices.entry(name).or_default().push(cuda(gpu));
        }
    }
    if failures.is_empty() { Ok(devices) } else { Err(failures) }
}

/// Returns a GPU's name in the configuration.
fn cuda(gpu: usize) -> String {
    format!("cuda:{gpu}")
}

/// Returns the failure that names what is needed, what there is, and what to change. `room` has each GPU's
/// number, its free bytes, and how many of them go to other models.
fn no_room(
    request: &PlacementRequest<'_>,
    replica: usize,
    room: impl Iterator<Item = (usize, Option<u64>, u64)>,
) -> VoteFailure {
    let memory = request.memory.unwrap_or_default();
    let (options, mut who) = (request.options, String::new());
    if options.replicas > 1 {
        who = format!("replica {replica} of {}: ", options.replicas);
    }
    let rooms: Vec<String> = room
        .map(|(gpu, free, taken)| {
            let free = free.unwrap_or_default();
            let others = if taken == 0 {
                String::new()
            } else {
                format!(", of which {} go to others of this configuration", gigabytes(taken))
            };
            format!("cuda:{gpu} has {} free{others}", gigabytes(free))
        })
        .collect();
    let (needed, parameters) = (gigabytes(memory.total()), gigabytes(memory.parameter_bytes));
    let (dtype, max_batch) = (&options.dtype, options.max_batch);
    let activations = gigabytes(memory.activation_bytes);
    VoteFailure::new(format!(
        "{who}does not fit: needs about {needed} ({parameters} of parameters in {dtype}, {activations} for batches of \
         {max_batch}), but {}; change its dtype, max_batch, replicas or device",
        rooms.join("; ")
    ))
}

/// Formats bytes in gigabytes.
fn gigabytes(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    /// Name, device, replicas, gigabytes of a replica.
    type Row = (&'static str, DeviceRequest, usize, u64);

    fn place_rows(rows: &[Row], free: &[Option<u64>]) -> Result<Vec<String>, Vec<String>> {
        let options: Vec<ModelOptions> = rows
            .iter()
            .map(|(_, _, replicas, _)| ModelOptions { replicas: *replicas, ..ModelOptions::default() })
            .collect();
        let requests: Vec<PlacementRequest<'_>> = rows
            .iter()
            .zip(&options)
            .map(|((name, device, _, size), options)| {
                let memory = MemoryEstimate { parameter_bytes: size * GB, activation_bytes: 0 };
                PlacementRequest { name, options, device: *device, memory: Some(memory) }
            })
            .collect();
        let gpus = free.iter().map(|free| free.map(|free| free * GB)).enumerate().collect();
        match place_replicas(&requests, &gpus) {
            Ok(devices) => {
                Ok(devices.iter().map(|(name, devices)| format!("{name}: {}", devices.join(" "))).collect())
            }
            Err(failures) => {
                Err(failures.iter().map(|(name, failure)| format!("{name}: {failure}")).collect())
            }
        }
    }

    #[test]
    fn replicas_go_apart_and_models_where_the_fewest_bytes_have_gone() {
        use DeviceRequest::{AnyGpu, Cpu, Gpu};
        let two = [Some(100), Some(100)];
        for (rows, free, expected) in [
            (vec![("a", Cpu, 2, 1)], &[][..], vec!["a: cpu cpu"]),
            (
                vec![("a", AnyGpu, 2, 10), ("b", AnyGpu, 2, 3)],
                &two[..],
                vec!["a: cuda:0 cuda:1", "b: cuda:0 cuda:1"],
            ),
            // The largest first, whatever its name; then what balances it.
            (vec![("a", AnyGpu, 1, 3), ("z", AnyGpu, 1, 10)], &two, vec!["a: cuda:1", "z: cuda:0"]),
            // Replicas apart, though one GPU has more already; a third where less is.
            (
                vec![("a", AnyGpu, 3, 3), ("z", AnyGpu, 1, 10)],
                &two,
                vec!["a: cuda:1 cuda:0 cuda:1", "z: cuda:0"],
            ),
            // Those that name their GPU first.
            (vec![("a", AnyGpu, 1, 10), ("b", Gpu(0), 1, 1)], &two, vec!["a: cuda:1", "b: cuda:0"]),
            (vec![("a", Gpu(1), 2, 10)], &two, vec!["a: cuda:1 cuda:1"]),
            // Room counts before balance, and what nobody knows has room.
            (vec![("a", AnyGpu, 2, 10)], &[Some(5), Some(50)], vec!["a: cuda:1 cuda:1"]),
            (vec![("a", AnyGpu, 1, 10)], &[Some(5), None], vec!["a: cuda:1"]),
        ] {
            assert_eq!(place_rows(&rows, free).unwrap(), expected, "{rows:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_to_change() {
        use DeviceRequest::{AnyGpu, Gpu};
        let rows = [("a", AnyGpu, 3, 10), ("b", Gpu(0), 1, 7), ("c", Gpu(1), 1, 90)];
        let failures = place_rows(&rows, &[Some(8), Some(25)]).unwrap_err();
        assert_eq!(
            failures,
            [
                "c: does not fit: needs about 90.00 GB (90.00 GB of parameters in fp32, 0.00 GB for batches of 32), but \
                 cuda:1 has 25.00 GB free; change its dtype, max_batch, replicas or device",
                "a: replica 2 of 3: does not fit: needs about 10.00 GB (10.00 GB of parameters in fp32, 0.00 GB for \
                 batches of 32), but cuda:0 has 8.00 GB free, of which 7.00 GB go to others of this configuration; \
                 cuda:1 has 25.00 GB free, of which 20.00 GB go to others of this configuration; change its dtype, \
                 max_batch, replicas or device",
            ]
        );
    }
}
