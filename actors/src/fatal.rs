//! The condition that this process cannot go on after, such as a lost GPU.

use std::sync::Arc;

use tokio::sync::watch;

/// A fatal condition, raised once by whoever finds it; the process then becomes unready and ends with a
/// non-zero status.
#[derive(Debug, Clone)]
pub struct Fatal(Arc<watch::Sender<Option<String>>>);

impl Default for Fatal {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl Fatal {
    /// Raises it with what happened.
    pub(crate) fn raise(&self, message: String) {
        tracing::error!(message, "this process cannot go on");
        self.0.send_replace(Some(message));
    }

    /// Returns what happened, if anything did.
    pub fn get(&self) -> Option<String> {
        self.0.borrow().clone()
    }

    /// Resolves when it is raised.
    pub async fn raised(&self) -> String {
        let mut changes = self.0.subscribe();
        match changes.wait_for(Option::is_some).await {
            Ok(message) => message.clone().unwrap_or_default(),
            // The sender is `self`.
            Err(_) => std::future::pending().await,
        }
    }
}
