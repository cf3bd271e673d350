//! TLS from the configured certificate.

use std::io;
use std::path::Path;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::ServerSection;

/// Returns the configuration of TLS, or `None` where no certificate is configured.
///
/// # Errors
/// Returns an error that names the file if the certificate or its key cannot be used.
pub(super) fn config(section: &ServerSection) -> io::Result<Option<ServerConfig>> {
    let (Some(certificate), Some(key)) = (&section.tls_certificate, &section.tls_key) else {
        return Ok(None);
    };
    let unusable = |path: &Path, error: &dyn std::fmt::Display| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{}: {error}", path.display()))
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|error| unusable(certificate, &error))?;
    let private_key = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, &error))?;
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, private_key)
        .map_err(|error| unusable(certificate, &error))?;
    Ok(Some(config))
}
