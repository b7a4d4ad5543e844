//! What `images/components/` says, validated, and what a user may say of a component.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nodezero_profile::Role;
use serde::Deserialize;

use crate::recipe::{self, Origin};

/// One component.
#[derive(Clone, Debug)]
pub struct Component {
    /// The file's stem.
    pub name: String,
    /// Roles whose images have it.
    pub roles: BTreeSet<Role>,
    /// What it gives to an image, the program first.
    pub files: Vec<FileSpec>,
    /// Where it comes from, in order.
    pub sources: Vec<Source>,
    /// Where its file begins.
    pub origin: Origin,
}

/// A file that a component gives.
#[derive(Clone, Debug)]
pub struct FileSpec {
    /// Its name in every source.
    pub name: String,
    /// Its path in the image, relative to the root.
    pub path: String,
    /// Permission bits.
    pub mode: u16,
    /// Whether a source may be without it.
    pub optional: bool,
    /// The file that it is a link to where a source is without it.
    pub or_link: Option<String>,
}

/// Where a component comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// The publisher's own release.
    Release(Release),
    /// A build of the publisher's own module.
    Module(Module),
    /// A program of ours that stands for it in tests.
    Standin(Standin),
}

/// A release: files at addresses.
#[derive(Clone, Debug)]
pub struct Release {
    /// Its version.
    pub version: String,
    /// Its files.
    pub downloads: Vec<Download>,
}

/// One address of a release.
#[derive(Clone, Debug)]
pub struct Download {
    /// The address, without placeholders.
    pub url: String,
    /// Files that it gives: the download itself, or members of the archive that it is.
    pub files: Vec<String>,
    /// Where the publisher states digests, for pinning.
    pub checksums: String,
}

/// A module of the Go proxy whose `go.sum` pins all that it needs.
#[derive(Clone, Debug)]
pub struct Module {
    /// The module's path.
    pub path: String,
    /// Its version.
    pub version: String,
    /// What is built of it.
    pub builds: Vec<Build>,
}

/// A stand-in: a Go module of this workspace.
#[derive(Clone, Debug)]
pub struct Standin {
    /// The version that it says it is, which is also that of what it stands on.
    pub version: String,
    /// The module's directory, relative to the workspace.
    pub directory: PathBuf,
    /// The set with the packages that it needs.
    pub set: String,
    /// What is built of it.
    pub builds: Vec<Build>,
}

/// One run of `go`.
#[derive(Clone, Debug)]
pub struct Build {
    /// The package, relative to the module.
    pub package: String,
    /// The file that it gives.
    pub file: String,
    /// Build tags.
    pub tags: Vec<String>,
    /// Variables that the linker sets.
    pub variables: BTreeMap<String, String>,
    /// Arguments of the program where it is not the file, but writes it to `{file}`.
    pub run: Option<Vec<String>>,
}

/// What a user says of a component's source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The release, or an error.
    Release,
    /// The build of the publisher's module.
    Go,
    /// The stand-in.
    Standin,
    /// None: the image goes without it, and says so.
    Without,
    /// A file or directory.
    Path(PathBuf),
}

impl FromStr for Choice {
    type Err = std::convert::Infallible;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Ok(match word {
            "release" => Self::Release,
            "go" => Self::Go,
            "standin" => Self::Standin,
            "none" => Self::Without,
            path => Self::Path(path.into()),
        })
    }
}

impl Source {
    /// The word by which a user chooses it, and by which records name it.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Release(_) => "release",
            Self::Module(_) => "go",
            Self::Standin(_) => "standin",
        }
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> &str {
        match self {
            Self::Release(release) => &release.version,
            Self::Module(module) => &module.version,
            Self::Standin(standin) => &standin.version,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawComponent {
    #[expect(dead_code, reason = "required of every component for its reader")]
    description: String,
    roles: Vec<toml::Spanned<String>>,
    file: Vec<RawFile>,
    source: Vec<toml::Spanned<RawSource>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawFile {
    name: toml::Spanned<String>,
    path: toml::Spanned<String>,
    mode: Option<toml::Spanned<String>>,
    #[serde(default)]
    optional: bool,
    or_link: Option<toml::Spanned<String>>,
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSource {
    release: Option<String>,
    #[serde(default)]
    download: Vec<RawDownload>,
    module: Option<String>,
    version: Option<String>,
    standin: Option<String>,
    directory: Option<PathBuf>,
    set: Option<String>,
    #[serde(default)]
    build: Vec<RawBuild>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDownload {
    url: String,
    files: Vec<toml::Spanned<String>>,
    checksums: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBuild {
    package: String,
    file: toml::Spanned<String>,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    variables: BTreeMap<String, String>,
    run: Option<Vec<String>>,
}

impl Component {
    /// Reads the components of an `images/` directory, sorted by name. There may be none.
    ///
    /// # Errors
    /// With file, line and column of what is wrong.
    pub fn load_all(images: &Path) -> Result<Vec<Self>, recipe::Error> {
        let mut paths: Vec<PathBuf> = fs::read_dir(images.join("components"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
            .collect();
        paths.sort();
        paths.iter().map(|path| Self::load(path)).collect()
    }

    fn load(path: &Path) -> Result<Self, recipe::Error> {
        let source = recipe::Source::read(path)?;
        let raw: RawComponent = source.parse()?;
        let mut roles = BTreeSet::new();
        for role in raw.roles {
            let parsed = role.get_ref().parse().map_err(|error| source.error(&role.span(), format!("{error}")))?;
            roles.insert(parsed);
        }
        let files: Vec<FileSpec> =
            raw.file.into_iter().map(|file| read_file(&source, file)).collect::<Result<_, _>>()?;
        if files.first().is_none_or(|file| file.optional || file.or_link.is_some()) {
            return Err(source.error(&(0..0), "the first [[file]] is the program, which every source has"));
        }
        let names: BTreeSet<&str> = files.iter().map(|file| file.name.as_str()).collect();
        let mut sources = Vec::new();
        for raw in raw.source {
            sources.push(read_source(&source, raw, &names)?);
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, roles, files, sources, origin: source.origin(0) })
    }

    /// The stand-in among its sources.
    #[must_use]
    pub fn standin(&self) -> Option<&Standin> {
        self.sources.iter().find_map(|source| match source {
            Source::Standin(standin) => Some(standin),
            Source::Release(_) | Source::Module(_) => None,
        })
    }
}

fn read_file(source: &recipe::Source, raw: RawFile) -> Result<FileSpec, recipe::Error> {
    source.reason(&raw.name.span(), &raw.reason)?;
    let name = source.filled(&raw.name, "a name")?;
    if name.contains('/') {
        return Err(source.error(&raw.name.span(), format!("{name:?} is the name of a file, without a directory")));
    }
    let mode = raw.mode.as_ref().map_or(Ok(0o644), |mode| source.mode(mode))?;
    let or_link = raw.or_link.map(|link| source.filled(&link, "a name")).transpose()?;
    Ok(FileSpec { name, path: source.path(&raw.path)?, mode, optional: raw.optional, or_link })
}

fn read_source(
    source: &recipe::Source,
    raw: toml::Spanned<RawSource>,
    names: &BTreeSet<&str>,
) -> Result<Source, recipe::Error> {
    let span = raw.span();
    let raw = raw.into_inner();
    let known = |file: &toml::Spanned<String>| -> Result<String, recipe::Error> {
        if names.contains(file.get_ref().as_str()) {
            return Ok(file.get_ref().clone());
        }
        Err(source.error(&file.span(), format!("{:?} is no [[file]] of the component", file.get_ref())))
    };
    let mut builds = Vec::new();
    for build in raw.build {
        let file = known(&build.file)?;
        builds.push(Build {
            package: build.package,
            file,
            tags: build.tags,
            variables: build.variables,
            run: build.run,
        });
    }
    match (raw.release, raw.module, raw.standin) {
        (Some(version), None, None) if builds.is_empty() && !raw.download.is_empty() => {
            let mut downloads = Vec::new();
            for download in raw.download {
                let files = download.files.iter().map(known).collect::<Result<_, _>>()?;
                let [url, checksums] = [download.url, download.checksums].map(|text| with_version(&text, &version));
                downloads.push(Download { url, files, checksums });
            }
            Ok(Source::Release(Release { version, downloads }))
        }
        (None, Some(path), None) if !builds.is_empty() && raw.download.is_empty() => {
            let version = raw.version.ok_or_else(|| source.error(&span, "a module has a version"))?;
            Ok(Source::Module(Module { path, version, builds }))
        }
        (None, None, Some(version)) if !builds.is_empty() && raw.download.is_empty() => {
            let (Some(directory), Some(set)) = (raw.directory, raw.set) else {
                return Err(source.error(&span, "a stand-in has a directory and a set"));
            };
            Ok(Source::Standin(Standin { version, directory, set, builds }))
        }
        _ => Err(source
            .error(&span, "a source is a release with downloads, a module with builds, or a stand-in with builds")),
    }
}

/// Puts a version into an address, percent-encoded as far as versions need it.
fn with_version(text: &str, version: &str) -> String {
    text.replace("{version}", &version.replace('+', "%2B"))
}

impl Download {
    /// The last component of the address, as the publisher's checksums name it.
    #[must_use]
    pub fn name(&self) -> &str {
        self.url.rsplit('/').next().unwrap_or(&self.url)
    }

    /// Whether it is an archive that holds the files.
    #[must_use]
    pub fn is_archive(&self) -> bool {
        self.url.ends_with(".tgz") || self.url.ends_with(".tar.gz")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "[[file]]\nname = \"p\"\npath = \"usr/bin/p\"\nreason = \"r\"\n";

    fn load(text: &str) -> Result<Component, recipe::Error> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("c.toml");
        fs::write(&path, text).expect("temporary files can be written");
        Component::load(&path)
    }

    #[test]
    fn a_version_reaches_addresses_encoded() {
        let text = format!(
            "description = \"d\"\nroles = [\"edge\"]\n{FILE}[[source]]\nrelease = \"v1+k3s1\"\n[[source.download]]\n\
             url = \"https://h/{{version}}/p\"\nfiles = [\"p\"]\nchecksums = \"https://h/{{version}}/sums\"\n"
        );
        let component = load(&text).expect("it is valid");
        let [Source::Release(release)] = &component.sources[..] else { panic!("{component:?}") };
        assert_eq!(release.downloads[0].url, "https://h/v1%2Bk3s1/p");
        assert_eq!((release.downloads[0].name(), release.downloads[0].is_archive()), ("p", false));
        assert_eq!((component.files[0].mode, component.files[0].optional), (0o644, false));
    }

    #[test]
    fn mistakes_are_named_with_line_and_column() {
        let head = "description = \"d\"\nroles = [\"edge\"]\n";
        let cases = [
            ("description = \"d\"\nroles = [\"egde\"]\nfile = []\nsource = []\n".to_owned(), ":2:10", "not a role"),
            (format!("{head}file = []\nsource = []\n"), ":1:1", "the program"),
            (format!("{head}{FILE}optional = true\nsource = []\n"), "", "unknown field"),
            (format!("{head}source = []\n{}", FILE.replace("\"r\"", "\"\"")), ":5:8", "reason is empty"),
            (format!("{head}source = []\n{}", FILE.replace("\"p\"", "\"a/b\"")), ":5:8", "without a directory"),
            (format!("{head}{FILE}[[source]]\nrelease = \"1\"\n"), ":7:1", "a source is"),
            (
                format!("{head}{FILE}[[source]]\nmodule = \"m\"\n[[source.build]]\npackage = \".\"\nfile = \"p\"\n"),
                ":7:1",
                "has a version",
            ),
            (
                format!("{head}{FILE}[[source]]\nstandin = \"1\"\n[[source.build]]\npackage = \".\"\nfile = \"p\"\n"),
                ":7:1",
                "a directory and a set",
            ),
            (
                format!("{head}{FILE}[[source]]\nstandin = \"1\"\n[[source.build]]\npackage = \".\"\nfile = \"q\"\n"),
                ":11:8",
                "no [[file]]",
            ),
        ];
        for (text, place, what) in cases {
            let error = load(&text).expect_err(&text).to_string();
            assert!(error.contains(place) && error.contains(what), "{text}: {error}");
        }
    }

    #[test]
    fn words_choose_and_all_else_is_a_path() {
        for (word, choice) in [
            ("release", Choice::Release),
            ("go", Choice::Go),
            ("standin", Choice::Standin),
            ("none", Choice::Without),
            ("./none", Choice::Path("./none".into())),
            ("/p/k3s", Choice::Path("/p/k3s".into())),
        ] {
            assert_eq!(word.parse(), Ok(choice), "{word}");
        }
    }
}
