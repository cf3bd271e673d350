//! Measures the path of a decoded image of twelve megapixels to a model on a GPU: preprocessed by the CPU and
//! copied, or copied and preprocessed there.

use std::time::Instant;

use concord_models::libtorch::{Stream, cuda_devices};
use concord_models::{
    DecodedImage, ImageLimits, PreprocessLimits, Preprocessor, Scale, decode_at, jpeg_size,
};
use tch::Device;

use crate::times::{RUNS, example, median, preprocessor};

/// The presets with one input size: the images of the others are preprocessed by the CPU.
const PRESETS: [&str; 3] = ["dinov3-vitl16", "siglip2-so400m-patch14-384", "florence2-large"];
const GPU: Device = Device::Cuda(0);

/// Prints the table if there is a GPU.
pub(crate) fn report() {
    if cuda_devices() == 0 {
        eprintln!("gpu skipped: there is none");
        return;
    }
    let jpeg = example();
    let size = jpeg_size(&jpeg, ImageLimits::default()).expect("it is an image").expect("it is a JPEG");
    let stream = Stream::new(GPU).expect("a stream");
    let _current = stream.enter().expect("the stream is entered");
    println!(
        "{:28} {:>7} {:>16} {:>16} {:>16} {:>7} {:>10}",
        "decoded 4000 x 3000, in ms",
        "decode",
        "CPU and copy",
        "CPU of staged",
        "copy and GPU",
        "ratio",
        "max |dx|"
    );
    for name in PRESETS {
        let by_cpu = preprocessor(name);
        let by_gpu = by_cpu.clone().for_device(GPU);
        for scale in [Scale::WHOLE, by_cpu.scale(size)] {
            let image = decode_at(&jpeg, ImageLimits::default(), scale, &|| true).expect("it is decoded");
            compare(name, scale, &image, [&by_cpu, &by_gpu], &stream);
        }
    }
}

fn compare(name: &str, scale: Scale, image: &DecodedImage, ways: [&Preprocessor; 2], stream: &Stream) {
    // The times of the CPU's part, and of everything until the image is on the device, for each way.
    let mut runs: [[Vec<f64>; 2]; 2] = Default::default();
    let mut values = Vec::new();
    // The first run selects kernels and allocates memory, and does not count.
    for run in 0..=RUNS {
        for (way, preprocessor) in ways.iter().enumerate() {
            let started = Instant::now();
            let pixels =
                preprocessor.apply_decoded(image, &PreprocessLimits::default()).expect("it is preprocessed");
            let ready = started.elapsed().as_secs_f64() * 1e3;
            let pixels = pixels.on(GPU).expect("it is finished");
            stream.synchronize().expect("the device works");
            let all = started.elapsed().as_secs_f64() * 1e3;
            if run == 0 {
                values.push(pixels.values);
            } else {
                runs[way][0].push(ready);
                runs[way][1].push(all);
            }
        }
    }
    let [[_, cpu], [staged, gpu]] = runs.map(|way| way.map(median));
    let difference = (&values[0] - &values[1]).abs().max().double_value(&[]);
    let eighths = format!("{}/8", scale.eighths());
    println!(
        "{name:28} {eighths:>7} {cpu:16.2} {staged:16.2} {gpu:16.2} {:7.2} {difference:10.4}",
        gpu / cpu
    );
}
