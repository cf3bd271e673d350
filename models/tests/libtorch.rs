//! Tests streams and events, which are no-ops on a CPU and order the work on a GPU.

mod harness;

use concord_models::free_host_memory;
use concord_models::libtorch::{Event, Stream, cuda_devices, device_memory};
use tch::{Device, Kind, Tensor};

use harness::gpus;

/// Returns the devices of this machine.
fn devices() -> Vec<Device> {
    std::iter::once(Device::Cpu).chain((0..gpus()).map(Device::Cuda)).collect()
}

#[test]
fn work_on_an_entered_stream_is_done_after_synchronize() {
    for device in devices() {
        let stream = Stream::new(device).unwrap();
        let product = {
            let _current = stream.enter().unwrap();
            let x = Tensor::ones([512, 512], (Kind::Float, device));
            x.matmul(&x)
        };
        stream.synchronize().unwrap();
        assert_eq!(f64::try_from(product.mean(Kind::Float)).unwrap(), 512.0, "{device:?}");
    }
}

#[test]
fn one_stream_waits_for_an_event_of_another() {
    for device in devices() {
        let (first, second) = (Stream::new(device).unwrap(), Stream::new(device).unwrap());
        let (mut x, written) = {
            let _current = first.enter().unwrap();
            let mut x = Tensor::zeros([1 << 22], (Kind::Float, device));
            for _ in 0..200 {
                x += 1.0;
            }
            (x, Event::record(&first).unwrap())
        };
        second.wait_for(&written).unwrap();
        {
            let _current = second.enter().unwrap();
            x *= 2.0;
        }
        second.synchronize().unwrap();
        assert_eq!(f64::try_from(x.max()).unwrap(), 400.0, "{device:?}");
    }
}

#[test]
fn events_measure_time_on_the_device() {
    for device in devices() {
        let stream = Stream::new(device).unwrap();
        let _current = stream.enter().unwrap();
        let start = Event::record(&stream).unwrap();
        let x = Tensor::ones([1024, 1024], (Kind::Float, device));
        let product = (0..10).fold(x.shallow_clone(), |y, _| y.matmul(&x) / 1024.0);
        let end = Event::record(&stream).unwrap();
        end.synchronize().unwrap();
        assert!(start.elapsed_ms(&end).unwrap() > 0.0, "{device:?}: {product:?}");
    }
}

#[test]
fn streams_of_one_thread_do_not_reach_another() {
    for device in devices() {
        let stream = Stream::new(device).unwrap();
        let _current = stream.enter().unwrap();
        let sum = std::thread::spawn(move || {
            let own = Stream::new(device).unwrap();
            let _current = own.enter().unwrap();
            let sum = Tensor::ones([1000], (Kind::Float, device)).sum(Kind::Float);
            own.synchronize().unwrap();
            f64::try_from(sum).unwrap()
        });
        assert_eq!(sum.join().unwrap(), 1000.0, "{device:?}");
    }
}

#[test]
fn events_of_different_devices_are_not_compared() {
    if gpus() == 0 {
        return;
    }
    let cpu = Event::record(&Stream::new(Device::Cpu).unwrap()).unwrap();
    let gpu = Event::record(&Stream::new(Device::Cuda(0)).unwrap()).unwrap();
    assert!(cpu.elapsed_ms(&gpu).unwrap_err().to_string().contains("different devices"));
}

#[test]
fn the_free_memory_of_every_gpu_is_known() {
    for gpu in 0..gpus() {
        let before = device_memory(gpu).unwrap();
        assert!(0 < before.free_bytes && before.free_bytes <= before.total_bytes, "{before:?}");
        // More than the allocator can have cached, so that it has to ask the driver.
        let taken = Tensor::zeros([1 << 28], (Kind::Uint8, Device::Cuda(gpu)));
        let less = device_memory(gpu).unwrap();
        assert!(less.free_bytes < before.free_bytes, "{before:?}, then {less:?} with {:?}", taken.size());
    }
    assert!(device_memory(cuda_devices()).is_err(), "there is no such device");
    assert!(free_host_memory().is_some_and(|bytes| bytes > 0));
}
