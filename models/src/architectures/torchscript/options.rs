//! The options of a TorchScript module, which describe its input and output.

use crate::image::preprocess::{FILTERS, InputOptions, SIDE_MAX};
use crate::options::{OptionKind, OptionSpec, OptionTable};

/// The kinds of output that a module may have.
pub(super) const OUTPUTS: &[&str] = &["logits", "probabilities"];

pub(super) const OUTPUT: OptionSpec = OptionSpec {
    name: "output",
    kind: OptionKind::Choice { what: "an output", values: OUTPUTS, default: OUTPUTS[0] },
    doc: "What comes out of the module, in the order of the task's labels: logits or probabilities.",
};

pub(super) const INPUT: OptionSpec = OptionSpec {
    name: "input",
    kind: OptionKind::Table(&[HEIGHT, WIDTH, FILTER, MEAN, STD]),
    doc: "What goes into the module: red, green and blue in the range 0–1, resized with antialiasing, less the mean, \
          divided by the standard deviation, [batch, 3, height, width].",
};

// The defaults are the input that torchvision's models take.
const HEIGHT: OptionSpec = OptionSpec::whole("height", [1, SIDE_MAX as u64], 224, "The height in pixels.");
const WIDTH: OptionSpec = OptionSpec::whole("width", [1, SIDE_MAX as u64], 224, "The width in pixels.");
const FILTER: OptionSpec = OptionSpec {
    name: "filter",
    kind: OptionKind::Choice { what: "a filter", values: &FILTERS, default: FILTERS[0] },
    doc: "How images are resized.",
};
const MEAN: OptionSpec = OptionSpec {
    name: "mean",
    kind: OptionKind::Channels { positive: false, default: [0.485, 0.456, 0.406] },
    doc: "The mean of red, green and blue.",
};
const STD: OptionSpec = OptionSpec {
    name: "std",
    kind: OptionKind::Channels { positive: true, default: [0.229, 0.224, 0.225] },
    doc: "The standard deviation of red, green and blue.",
};

/// Returns the input that the options describe.
pub(super) fn input_of(own: &OptionTable) -> InputOptions {
    let input = own.table(&INPUT);
    InputOptions {
        height: input.whole(&HEIGHT).cast_signed(),
        width: input.whole(&WIDTH).cast_signed(),
        filter: input.choice(&FILTER),
        mean: input.channels(&MEAN),
        std: input.channels(&STD),
    }
}
