//! The image side, which turns crops into the image tokens of the text model through the tower and the
//! adapter.

use tch::{Device, Kind, Tensor};

use super::adapter::Adapter;
use super::vision::VisionTower;
use crate::ModelError;
use crate::image::preprocess::{Pixels, Tiles, Tiling};
use crate::runtime::cuda_graphs::CudaGraphCache;

/// The name of this side's graphs among those of the model.
const GRAPHS: &str = "images";
/// The most crops that run through a CUDA graph. Each number of crops has graphs of its own: padding with
/// whole crops would cost more than it saves. More crops keep the device busy for longer than their work
/// takes to launch: so400m's tower takes 1.3 ms a crop on an H200, and the launches of a tower as deep take
/// 7 ms.
const GRAPHED_CROPS_MAX: i64 = 16;

/// Images in the layout that the image tower and the adapter take.
#[derive(Debug)]
pub(super) struct Images {
    /// The patches of the crops of all images, one image after the other, [crops, patches, patch·patch·3].
    pub(super) patches: Tensor,
    /// The indices of the patches of each token, counted through all crops, with −1 for none,
    /// [tokens, window].
    pub(super) pooling: Tensor,
}

/// Returns how an image was cut into crops.
///
/// # Errors
/// Fails when the pixels are of another model's preprocessor.
pub(super) fn tiles_of(image: &Pixels) -> Result<&Tiles, ModelError> {
    let missing = || ModelError::Unsupported("these pixels are of another model's preprocessor".to_owned());
    image.tiles().ok_or_else(missing)
}

impl Images {
    pub(super) fn new(images: &[&Pixels]) -> Result<Self, ModelError> {
        let (mut patches, mut pooling, mut before) = (Vec::new(), Vec::new(), 0);
        for image in images {
            let own = &tiles_of(image)?.pooling;
            pooling.push((own + before).where_self(&own.ge(0), own));
            before += image.values.size()[0] * image.values.size()[1];
            patches.push(&image.values);
        }
        Ok(Self { patches: Tensor::cat(&patches, 0), pooling: Tensor::cat(&pooling, 0) })
    }
}

/// The image tower and the adapter.
#[derive(Debug)]
pub(super) struct ImageSide {
    pub(super) tower: VisionTower,
    pub(super) adapter: Adapter,
    pub(super) device: Device,
}

impl ImageSide {
    /// Returns the image tokens [tokens, text hidden], through a CUDA graph where graphs are on and the crops
    /// are few.
    pub(super) fn features(&self, images: &Images, graphs: &CudaGraphCache) -> Result<Tensor, ModelError> {
        let patches = images.patches.f_to_device(self.device)?;
        let pooling = images.pooling.f_to_device(self.device)?;
        if patches.size()[0] > GRAPHED_CROPS_MAX {
            return Ok(self.forward(&patches, &pooling));
        }
        // The tokens are what is padded: each is made of its own patches alone.
        let forward = |inputs: &[Tensor]| vec![self.forward(&inputs[1], &inputs[0])];
        let outputs = graphs.run_as(GRAPHS, &[&pooling], &[&patches], forward)?;
        outputs.into_iter().next().ok_or(ModelError::NotPrepared)
    }

    fn forward(&self, patches: &Tensor, pooling: &Tensor) -> Tensor {
        self.adapter.forward(&self.tower.features(patches).flatten(0, 1), pooling)
    }

    /// Runs each layout of a single image that has a graph, so that no image has to wait for its recording.
    pub(super) fn warm_up(&self, tiling: &Tiling, graphs: &CudaGraphCache) -> Result<(), ModelError> {
        for layout in tiling.layouts(GRAPHED_CROPS_MAX - 1) {
            let patches = Tensor::f_zeros(tiling.shape(layout), (Kind::Float, Device::Cpu))?;
            let pooling = tiling.layout_tiles(layout)?.pooling;
            let _features = self.features(&Images { patches, pooling }, graphs)?;
        }
        Ok(())
    }
}
