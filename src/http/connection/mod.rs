//! The connections of the endpoint: how long a client may take to send a request and to take its response, and
//! what happens to a body that nobody reads. Knows neither routes nor models.

mod activity;
mod listener;
mod stream;
mod unread_body;

pub(super) use self::listener::{Listener, listen};
pub(super) use self::unread_body::close_if_body_is_unread;
