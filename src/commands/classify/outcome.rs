//! The outcome of one image, and its JSON.

use serde_json::{Map, Value, json};

use crate::problem::Problem;
use crate::response::ClassifyResponse;
use crate::telemetry::RequestContext;

/// The verdict about one image, or why there is none.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) file: String,
    pub(super) request: RequestContext,
    pub(super) task: String,
    pub(super) result: Result<ClassifyResponse, Problem>,
}

impl Outcome {
    /// Returns one object: the file, and beside it the verdict's fields, or `error`.
    pub(super) fn json(&self) -> Value {
        let mut object = Map::new();
        object.insert("file".to_owned(), Value::from(self.file.as_str()));
        match &self.result {
            Ok(verdict) => {
                if let Ok(Value::Object(fields)) = serde_json::to_value(verdict) {
                    object.extend(fields);
                }
            }
            Err(problem) => {
                object.insert("request_id".to_owned(), Value::from(self.request.id.to_string()));
                object.insert("task".to_owned(), Value::from(self.task.as_str()));
                object.insert("error".to_owned(), json!(problem));
            }
        }
        Value::Object(object)
    }
}
