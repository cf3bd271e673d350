//! The architectures: each is a folder that loads one family of snapshots as a [`Model`](crate::Model).
//!
//! The layers beneath this one know no architecture by name.

pub(crate) mod architecture;
#[cfg(test)]
pub(crate) mod brightness;
pub(crate) mod dinov3;
pub(crate) mod florence2;
pub(crate) mod memory;
pub(crate) mod molmo2;
pub(crate) mod registry;
pub(crate) mod siglip2;
pub(crate) mod torchscript;
