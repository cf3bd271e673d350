//! The validated configuration as a whole.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use concord_actors::{CacheSection, CloudSection, EngineOptions};
use concord_models::ModelOptions;
use concord_policy::Policy;

use super::error::{ConfigError, Diagnostics, LocatedDiagnostic};
use super::reader::{Sections, read_sections};
use super::server::ServerSection;
use super::source::Source;
use crate::telemetry::TelemetrySection;

/// A configuration without faults: every name in it refers to something, and every number is in its range.
#[derive(Debug, Clone, PartialEq)]
pub struct Ensemble {
    folder: PathBuf,
    sections: Sections,
}

impl Ensemble {
    /// Reads a file, overridden by the `CONCORD__SECTION__KEY` variables of this process.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, or all of its faults if it has any.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Ok(Self::parse(&text, &path.display().to_string(), folder, variables)?)
    }

    /// Reads the text of a file that is called `name` in messages and lies in `folder`, overridden by
    /// `variables`, and the learned files of its tasks.
    ///
    /// # Errors
    /// Returns all faults, in the order of the lines.
    pub fn parse(
        text: &str,
        name: &str,
        folder: &Path,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Diagnostics> {
        let mut source =
            Source::parse(text, variables).map_err(|fault| Diagnostics::new(name, vec![fault]))?;
        let (sections, faults) = read_sections(std::mem::take(&mut source.values), folder);
        let mut located = std::mem::take(&mut source.refused);
        for fault in faults {
            located.push(LocatedDiagnostic { location: source.locate(&fault.path), diagnostic: fault });
        }
        if located.is_empty() {
            Ok(Self { folder: folder.to_owned(), sections })
        } else {
            Err(Diagnostics::new(name, located))
        }
    }

    /// Returns the folder of the file, from which relative paths of snapshots and learned files start.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the options to start the actors of all models with.
    pub fn engine_options(&self) -> EngineOptions {
        let server = self.server();
        EngineOptions {
            models: self.models().clone(),
            clouds: self.clouds().clone(),
            base: self.folder.clone(),
            cache: self.cache().clone(),
            image_limits: server.image_limits(),
            max_pixels_in_flight: server.max_pixels_in_flight,
            max_in_flight: usize::try_from(server.max_in_flight).unwrap_or(usize::MAX),
            cpu_threads: server.cpu_threads,
        }
    }

    /// Returns the section `[server]`.
    pub fn server(&self) -> &ServerSection {
        &self.sections.server
    }

    /// Returns the section `[cache]`.
    pub fn cache(&self) -> &CacheSection {
        &self.sections.cache
    }

    /// Returns the section `[telemetry]`.
    pub fn telemetry(&self) -> &TelemetrySection {
        &self.sections.telemetry
    }

    /// Returns the sections `[models.NAME]` of the models that run on this machine, by name.
    pub fn models(&self) -> &BTreeMap<String, ModelOptions> {
        &self.sections.models
    }

    /// Returns the sections `[models.NAME]` of the models behind a server, by name.
    pub fn clouds(&self) -> &BTreeMap<String, CloudSection> {
        &self.sections.clouds
    }

    /// Returns the policies of the sections `[tasks.NAME]`, by name; there is at least one.
    pub fn tasks(&self) -> &BTreeMap<String, Policy> {
        &self.sections.tasks
    }
}
