//! Which certificate a user sees: by the name that it asks for (SNI, RFC 6066), and by what it can check.

use super::pem::{self, Fault, Identity};
use super::{CertificateFiles, TlsSettings};
use rustls::SignatureScheme;
use rustls::sign::CertifiedKey;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Longest name of a host, bytes.
const NAME_BYTES_MAX: usize = 253;

/// All certificates, read and checked: immutable, and in force as a whole.
#[derive(Debug)]
pub struct Certificates {
    all: Vec<Certificate>,
    /// By name; those of one name in the order of the configuration.
    exact: HashMap<Box<str>, Vec<usize>>,
    /// By what follows `*.`.
    below: HashMap<Box<str>, Vec<usize>>,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Certificate {
    key: Arc<CertifiedKey>,
    /// The first name that it is for; empty where it has none.
    pub(crate) name: String,
    /// When it ends, seconds since 1970.
    pub(crate) not_after: i64,
}

/// What a name led to.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) key: Arc<CertifiedKey>,
    /// It is for the name.
    pub(super) named: bool,
}

impl Certificates {
    /// Reads the files of `settings`.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn read(settings: &TlsSettings) -> Result<Self, Fault> {
        let (mut all, mut exact, mut below) = (Vec::new(), HashMap::new(), HashMap::new());
        for (at, files) in settings.certificates.iter().enumerate() {
            let of = format!("proxy.tls.certificate[{at}]");
            let (of_chain, of_key) = (format!("{of}.chain"), format!("{of}.key"));
            let identity = pem::read_identity((&of_chain, &files.chain), (&of_key, &files.key))?;
            let names = names(&of, files, &identity)?;
            for name in &names {
                let (map, name): (&mut HashMap<Box<str>, Vec<usize>>, _) =
                    match name.strip_prefix("*.") {
                        Some(parent) => (&mut below, parent),
                        None => (&mut exact, name.as_str()),
                    };
                map.entry(name.into()).or_default().push(at);
            }
            all.push(Certificate {
                key: identity.key,
                name: names.into_iter().next().unwrap_or_default(),
                not_after: identity.not_after,
            });
        }
        Ok(Self { all, exact, below })
    }

    /// In the order of the configuration.
    pub(crate) fn all(&self) -> &[Certificate] {
        &self.all
    }

    /// What each is for, and how long it will do, a line each.
    #[must_use]
    pub fn describe(&self, settings: &TlsSettings, now: SystemTime) -> Vec<String> {
        let now = now.duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |now| now.as_secs() as i64);
        let all = settings.certificates.iter().zip(&self.all).enumerate();
        let line = |(at, (files, one)): (usize, (&CertificateFiles, &Certificate))| {
            let of = |map: &HashMap<Box<str>, Vec<usize>>, star| {
                let own = map.iter().filter(|(_, all)| all.contains(&at));
                let own = own.map(|(name, _)| format!("{star}{name}"));
                own.collect::<Vec<_>>()
            };
            let mut names = [of(&self.exact, ""), of(&self.below, "*.")].concat();
            names.sort();
            let days = (one.not_after - now) / 86_400;
            let chain = files.chain.display();
            format!("{chain}: for {}; {days} days left", names.join(", "))
        };
        all.map(line).collect()
    }

    /// What is allowed but rarely meant, a line each.
    #[must_use]
    pub fn notes(&self, settings: &TlsSettings, now: SystemTime) -> Vec<String> {
        let now = now.duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |now| now.as_secs() as i64);
        let mut notes = Vec::new();
        for (at, (files, one)) in settings.certificates.iter().zip(&self.all).enumerate() {
            let key = format!("proxy.tls.certificate[{at}]");
            notes.extend(key_note(&key, &files.key));
            if one.not_after <= now {
                let path = files.chain.display();
                notes.push(format!("{key}.chain: {path}: the certificate has expired"));
            }
        }
        notes
    }

    /// The certificate for `name`, of which the caller's keys can be checked by one of `schemes`.
    pub(super) fn find(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<Found> {
        let usable = |at: &usize| {
            let one = &self.all.get(*at)?.key;
            one.key.choose_scheme(schemes).map(|_| one.clone())
        };
        let (exact, below) = name.map_or((None, None), |name| {
            let below = name.split_once('.').map(|(_, parent)| parent);
            (
                self.exact.get(name),
                below.and_then(|parent| self.below.get(parent)),
            )
        });
        let mut named = exact.into_iter().chain(below).flatten();
        if let Some(key) = named.find_map(usable) {
            return Some(Found { key, named: true });
        }
        let key = (0..self.all.len()).find_map(|at| usable(&at))?;
        Some(Found { key, named: false })
    }
}

/// A line where everybody may read a key. It is no error: secrets that an orchestrator mounts often are so.
pub(super) fn key_note(of: &str, key: &Path) -> Option<String> {
    pem::is_readable_by_others(key).then(|| {
        let path = key.display();
        format!("{of}.key: {path}: every user of this machine may read it; chmod o-r")
    })
}

/// The names that a certificate is used for.
fn names(of: &str, files: &CertificateFiles, identity: &Identity) -> Result<Vec<String>, Fault> {
    if files.names.is_empty() {
        let good = |name: &&String| is_name(name);
        return Ok(identity.names.iter().filter(good).cloned().collect());
    }
    for name in &files.names {
        // One without any is an old one, that its clients know by other means.
        let covered = |own: &String| covers(own, name);
        if !identity.names.is_empty() && !identity.names.iter().any(covered) {
            let problem = format!(
                "{name:?} is not in the certificate, which is for {}",
                identity.names.join(", ")
            );
            return Err(Fault::new(&format!("{of}.names"), &files.chain, problem));
        }
    }
    Ok(files.names.clone())
}

/// Whether a certificate's name is for `name` (RFC 6125, section 6.4.3: a star is one whole label, the first).
fn covers(own: &str, name: &str) -> bool {
    own == name
        || own.strip_prefix("*.").is_some_and(|parent| {
            name.split_once('.')
                .is_some_and(|(first, rest)| first != "*" && rest == parent)
        })
}

/// Whether `name` is one of a host, in lower case, perhaps with `*.` in front.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let host = name.strip_prefix("*.").unwrap_or(name);
    let good =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(good);
    name.len() <= NAME_BYTES_MAX && host.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::TlsVersion;
    use std::path::PathBuf;

    struct Made {
        directory: tempfile::TempDir,
    }

    impl Made {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            Self { directory }
        }

        fn files(
            &self,
            file: &str,
            names: &[&str],
            algorithm: &'static rcgen::SignatureAlgorithm,
        ) -> CertificateFiles {
            let key = rcgen::KeyPair::generate_for(algorithm).expect("a key");
            let names = names.iter().map(|&name| name.to_owned());
            let params = rcgen::CertificateParams::new(names.collect::<Vec<_>>()).expect("names");
            let certificate = params.self_signed(&key).expect("signed");
            CertificateFiles {
                chain: self.write(&format!("{file}.pem"), &certificate.pem()),
                key: self.write(&format!("{file}.key"), &key.serialize_pem()),
                names: Vec::new(),
            }
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.directory.path().join(name);
            std::fs::write(&path, text).expect("written");
            path
        }
    }

    fn settings(certificates: Vec<CertificateFiles>) -> TlsSettings {
        TlsSettings {
            listen: ([127, 0, 0, 1], 0).into(),
            certificates,
            version_min: TlsVersion::V12,
            strict_sni: false,
        }
    }

    const EC: &[SignatureScheme] = &[SignatureScheme::ECDSA_NISTP256_SHA256];
    const ED: &[SignatureScheme] = &[SignatureScheme::ED25519];

    #[test]
    fn a_name_leads_to_its_certificate_and_others_to_the_first() {
        let made = Made::new();
        let ec = &rcgen::PKCS_ECDSA_P256_SHA256;
        let set = Certificates::read(&settings(vec![
            made.files("first", &["one.example"], ec),
            made.files("star", &["*.two.example", "two.example"], ec),
            made.files("exact", &["shop.two.example"], ec),
        ]))
        .expect("good");
        let at = |name: Option<&str>| {
            let found = set.find(name, EC).expect("one");
            let at = set
                .all
                .iter()
                .position(|one| Arc::ptr_eq(&one.key, &found.key));
            (at.expect("known"), found.named)
        };
        assert_eq!(at(Some("one.example")), (0, true));
        assert_eq!(at(Some("two.example")), (1, true));
        assert_eq!(at(Some("a.two.example")), (1, true));
        assert_eq!(at(Some("shop.two.example")), (2, true));
        // A star is one label, and not none.
        assert_eq!(at(Some("a.b.two.example")), (0, false));
        assert_eq!(at(Some("example")), (0, false));
        assert_eq!(at(None), (0, false));
        assert_eq!(set.all[1].name, "*.two.example");
    }

    #[test]
    fn of_two_for_one_name_each_user_gets_the_one_that_it_can_check() {
        let made = Made::new();
        let set = Certificates::read(&settings(vec![
            made.files("ec", &["a.example"], &rcgen::PKCS_ECDSA_P256_SHA256),
            made.files("ed", &["a.example"], &rcgen::PKCS_ED25519),
        ]))
        .expect("good");
        let key = |schemes| set.find(Some("a.example"), schemes).expect("one").key;
        assert!(Arc::ptr_eq(&key(EC), &set.all[0].key));
        assert!(Arc::ptr_eq(&key(ED), &set.all[1].key));
        assert!(set.find(Some("a.example"), &[]).is_none());
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told_in_one_line_without_its_content() {
        let made = Made::new();
        let ec = &rcgen::PKCS_ECDSA_P256_SHA256;
        let good = made.files("good", &["a.example"], ec);
        let other = made.files("other", &["a.example"], ec);
        let wrong = |change: fn(&mut CertificateFiles, &Made, CertificateFiles)| {
            let mut files = good.clone();
            change(&mut files, &made, other.clone());
            let error = Certificates::read(&settings(vec![good.clone(), files]));
            error.expect_err("wrong").to_string()
        };
        let cases = [
            (
                wrong(|files, _, other| files.key = other.key),
                "is not the key of the certificate in",
            ),
            (
                wrong(|files, _, _| files.key = "/no/such.key".into()),
                "certificate[1].key: /no/such.key: can't be read",
            ),
            (
                wrong(|files, _, _| files.chain = "/dev/null".into()),
                "certificate[1].chain: /dev/null: is no file",
            ),
            (
                wrong(|files, made, _| files.chain = made.write("empty", "")),
                "holds no PEM certificate",
            ),
            (
                wrong(|files, _, _| files.key.clone_from(&files.chain)),
                "holds no PEM key",
            ),
            (
                wrong(|files, _, _| files.names = vec!["b.example".to_owned()]),
                "certificate[1].names: ",
            ),
        ];
        for (said, expected) in cases {
            assert!(said.contains(expected), "{said}");
            assert!(!said.contains('\n') && !said.contains("-----"), "{said}");
        }
    }

    #[test]
    fn a_key_that_everybody_may_read_and_an_end_that_is_over_are_noted() {
        use std::os::unix::fs::PermissionsExt as _;
        let made = Made::new();
        let files = made.files("a", &["a.example"], &rcgen::PKCS_ED25519);
        let mode = |mode| {
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(&files.key, permissions).expect("owned");
        };
        let settings = settings(vec![files.clone()]);
        let set = Certificates::read(&settings).expect("good");
        mode(0o640);
        assert_eq!(set.notes(&settings, UNIX_EPOCH), Vec::<String>::new());
        mode(0o644);
        // Made here, they end in the year 4096.
        let late = UNIX_EPOCH + std::time::Duration::from_secs(100_000_000_000);
        let notes = set.notes(&settings, late);
        assert!(notes[0].contains("every user of this machine"), "{notes:?}");
        assert!(notes[1].contains("has expired"), "{notes:?}");
    }

    #[test]
    fn names_of_hosts_are_told_from_others() {
        for good in ["a", "a.example", "*.a.example", "x-1_y.b2"] {
            assert!(is_name(good), "{good}");
        }
        let long = "a.".repeat(130);
        for bad in [
            "",
            "*",
            "*.",
            "a..b",
            "A.example",
            "a.*.b",
            "a\"b",
            ".a",
            &long,
        ] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
