//! Chooses the packages that a set of requests needs.
//!
//! What the relationships mean is in [Debian Policy 7][policy]. The result depends on nothing but the arguments:
//!
//! - Of each name the [`Universe`] offers one version, the highest.
//! - Whatever has one candidate is selected before anything with a choice is looked at, so that an alternative which
//!   is needed anyway is taken. Else the [`Policy`] prefers, else the first alternative is taken that leads to a
//!   solution; among the providers of a virtual package the first by name, after a real package of that name.
//! - A choice that ends in a conflict is taken back, and only the choices that led to it are: the search jumps back to
//!   the last of them. It gives up after some thousand attempts.
//!
//! Recommendations and suggestions are not followed, essential packages are not added, and nothing is ever removed or
//! downgraded: this makes new systems. Several architectures at once are left out; a qualifier such as `:any` is
//! satisfied by the one there is.
//!
//! [policy]: https://www.debian.org/doc/debian-policy/ch-relationships.html

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use crate::Error;
use crate::index::Package;
use crate::relation::{Constraint, Dependency, Relation};

/// How many choices may fail before the search gives up.
const MAX_ATTEMPTS: usize = 10_000;
/// How many similar names an error offers.
const MAX_NEAR: usize = 3;

/// A package that somebody wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Name of a package, real or virtual.
    pub name: String,
    /// The versions that will do; all, where there is no constraint.
    pub constraint: Option<Constraint>,
    /// Why, as it shall read in errors and in [`Selected::because`]: `recipe worker`.
    pub reason: String,
}

/// What the caller decides about choices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// Packages that are never installed. A dependency on one of these names counts as satisfied, and so does one on
    /// a virtual package that nothing else provides.
    pub omit: BTreeSet<String>,
    /// For the name of a virtual package, or of one alternative of several, the package to take instead.
    pub prefer: BTreeMap<String, String>,
}

/// The packages there are: one version of each.
#[derive(Debug, Clone)]
pub struct Universe {
    /// Sorted by name.
    packages: Vec<Package>,
    by_name: BTreeMap<String, usize>,
    /// The packages that provide a name, sorted by their own.
    providers: BTreeMap<String, Vec<usize>>,
}

/// A set of packages that fit together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolution {
    /// Sorted by name.
    pub packages: Vec<Selected>,
}

/// A package of a [`Resolution`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    /// The package.
    pub package: Package,
    /// The first reason it was selected for.
    pub because: Chain,
}

/// Who needs something: the reason of a request, then the packages from that request to the one that needs it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Chain(Vec<String>);

impl Chain {
    /// The reason of the request, then names of packages, each of which needs the next.
    pub fn links(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.join(" -> "))
    }
}

impl Universe {
    /// Keeps the highest version of each name; of equal versions, the first.
    #[must_use]
    pub fn new(packages: Vec<Package>) -> Self {
        let mut newest: BTreeMap<String, Package> = BTreeMap::new();
        for package in packages {
            match newest.get_mut(&package.name) {
                Some(known) if known.version >= package.version => {}
                Some(known) => *known = package,
                None => {
                    newest.insert(package.name.clone(), package);
                }
            }
        }
        let packages: Vec<Package> = newest.into_values().collect();
        let by_name = packages.iter().enumerate().map(|(id, package)| (package.name.clone(), id)).collect();
        let mut providers: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (id, package) in packages.iter().enumerate() {
            for provided in &package.provides {
                let providers = providers.entry(provided.name.clone()).or_default();
                // A package may provide several versions of one name.
                if providers.last() != Some(&id) {
                    providers.push(id);
                }
            }
        }
        Self { packages, by_name, providers }
    }

    /// The package of a name, real ones only.
    #[must_use]
    pub fn package(&self, name: &str) -> Option<&Package> {
        self.by_name.get(name).map(|id| &self.packages[*id])
    }

    /// The packages that provide a name, sorted by their own.
    pub fn providers(&self, name: &str) -> impl Iterator<Item = &Package> {
        self.providers.get(name).into_iter().flatten().map(|id| &self.packages[*id])
    }

    /// All packages, sorted by name.
    #[must_use]
    pub fn packages(&self) -> &[Package] {
        &self.packages
    }

    /// Whether a package is what a relation asks for, by its name or by what it provides.
    fn satisfies(&self, id: usize, relation: &Relation) -> bool {
        let package = &self.packages[id];
        let by_name = package.name == relation.name && relation.accepts(&package.version);
        let satisfied = by_name || package.provides.iter().any(|provided| relation.accepts_provided(provided));
        satisfied && relation.accepts_architecture(&package.architecture)
    }

    /// The packages that satisfy a relation: that of its name, then its providers.
    fn candidates(&self, relation: &Relation) -> impl Iterator<Item = usize> {
        let real = self.by_name.get(&relation.name);
        let providers = self.providers.get(&relation.name).into_iter().flatten();
        real.into_iter().chain(providers).copied().filter(|id| self.satisfies(*id, relation))
    }

    /// Names that a wanted one may be a mistake for, the most similar first.
    fn near(&self, wanted: &str) -> Vec<String> {
        let bound = (wanted.len() / 3).clamp(1, 3);
        let mut near: Vec<(usize, &str)> = self
            .by_name
            .keys()
            .chain(self.providers.keys())
            .filter_map(|name| Some((distance(wanted, name, bound)?, name.as_str())))
            .collect();
        near.sort_unstable();
        near.dedup();
        near.into_iter().take(MAX_NEAR).map(|(_, name)| name.to_owned()).collect()
    }
}

/// Chooses the packages that all requests need.
///
/// # Errors
///
/// [`Error::Unsatisfiable`] and [`Error::Conflict`] with the chains of who needs what: of several failures the first.
/// [`Error::SearchBound`] if there are too many combinations, [`Error::OmittedRequest`] if the policy omits a request.
pub fn resolve(wanted: &[Request], universe: &Universe, policy: &Policy) -> Result<Resolution, Error> {
    for request in wanted {
        if policy.omit.contains(&request.name) {
            return Err(Error::OmittedRequest { name: request.name.clone(), reason: request.reason.clone() });
        }
    }
    let requests: Vec<Dependency> = wanted.iter().map(requirement).collect();
    let solver = Solver { wanted, universe, policy };
    let mut state = State::default();
    for (index, requirement) in requests.iter().enumerate() {
        state.forced.push_back(Task { requester: Requester::Request(index), dependency: requirement });
    }
    solver.search(state).map(|state| solver.resolution(&state))
}

fn requirement(request: &Request) -> Dependency {
    let relation = Relation { name: request.name.clone(), qualifier: None, constraint: request.constraint.clone() };
    Dependency { alternatives: vec![relation] }
}

struct Solver<'a> {
    wanted: &'a [Request],
    universe: &'a Universe,
    policy: &'a Policy,
}

/// What has been selected, and what remains to be seen to. Every choice keeps a copy, to which the search can return.
#[derive(Clone, Default)]
struct State<'a> {
    selected: BTreeMap<usize, Origin>,
    /// The selected packages that have or provide a name.
    present: BTreeMap<&'a str, Vec<usize>>,
    /// The selected packages that refuse to be installed beside something of a name.
    refused: BTreeMap<&'a str, Vec<Refusal<'a>>>,
    /// Tasks that may have only one way.
    forced: VecDeque<Task<'a>>,
    /// Tasks with several ways.
    deferred: VecDeque<Task<'a>>,
}

/// Why a package was selected.
#[derive(Clone, Copy)]
struct Origin {
    requester: Requester,
    /// The choice that selected it, where there were several ways.
    level: Option<usize>,
}

#[derive(Clone, Copy)]
enum Requester {
    Request(usize),
    Package(usize),
}

#[derive(Clone, Copy)]
struct Task<'a> {
    requester: Requester,
    dependency: &'a Dependency,
}

/// That a package declares `Conflicts` or `Breaks`.
#[derive(Clone, Copy)]
struct Refusal<'a> {
    package: usize,
    relation: &'a Relation,
    verb: &'static str,
}

/// A decision between several candidates.
struct Choice<'a> {
    before: State<'a>,
    task: Task<'a>,
    candidates: VecDeque<usize>,
    /// The earlier choices that candidates so far have failed for.
    blame: BTreeSet<usize>,
}

/// A dead end, and the choices that led to it.
struct Failure {
    error: Box<Error>,
    blame: BTreeSet<usize>,
}

enum Ways {
    Satisfied,
    Candidates(VecDeque<usize>),
}

enum Progress<'a> {
    Done,
    Choose(Task<'a>, VecDeque<usize>),
}

impl<'a> Solver<'a> {
    fn search(&self, mut state: State<'a>) -> Result<State<'a>, Error> {
        let mut choices: Vec<Choice<'a>> = Vec::new();
        let mut first_error = None;
        let mut attempts = 0;
        loop {
            let mut next = match self.propagate(&mut state) {
                Ok(Progress::Done) => return Ok(state),
                Ok(Progress::Choose(task, candidates)) => {
                    choices.push(Choice { before: state, task, candidates, blame: BTreeSet::new() });
                    self.try_next(&mut choices)
                }
                Err(failure) => Err(failure),
            };
            while let Err(Failure { error, mut blame }) = next {
                let error = first_error.unwrap_or(error);
                let Some(level) = blame.pop_last() else { return Err(*error) };
                attempts += 1;
                if attempts == MAX_ATTEMPTS {
                    return Err(Error::SearchBound { tried: attempts, source: error });
                }
                first_error = Some(error);
                choices.truncate(level + 1);
                choices[level].blame.append(&mut blame);
                next = self.try_next(&mut choices);
            }
            state = next.map_err(|failure| *failure.error)?;
        }
    }

    /// Does all there is to do without a choice.
    fn propagate(&self, state: &mut State<'a>) -> Result<Progress<'a>, Failure> {
        loop {
            while let Some(task) = state.forced.pop_front() {
                match self.ways(state, task) {
                    Ways::Satisfied => {}
                    Ways::Candidates(candidates) if candidates.len() > 1 => state.deferred.push_back(task),
                    Ways::Candidates(candidates) => {
                        let Some(id) = candidates.front() else { return Err(self.unsatisfiable(state, task)) };
                        self.select(state, *id, Origin { requester: task.requester, level: None })?;
                    }
                }
            }
            let Some(task) = state.deferred.pop_front() else { return Ok(Progress::Done) };
            match self.ways(state, task) {
                Ways::Satisfied => {}
                Ways::Candidates(candidates) => return Ok(Progress::Choose(task, candidates)),
            }
        }
    }

    /// Follows the next candidate of the last choice. Without any left, all of its earlier blame is passed on.
    fn try_next(&self, choices: &mut [Choice<'a>]) -> Result<State<'a>, Failure> {
        let level = choices.len() - 1;
        let choice = &mut choices[level];
        let Some(id) = choice.candidates.pop_front() else {
            let mut failure = self.unsatisfiable(&choice.before, choice.task);
            failure.blame.append(&mut choice.blame);
            return Err(failure);
        };
        let mut state = choice.before.clone();
        self.select(&mut state, id, Origin { requester: choice.task.requester, level: Some(level) })?;
        Ok(state)
    }

    /// How a dependency can be satisfied, best first.
    fn ways(&self, state: &State<'a>, task: Task<'a>) -> Ways {
        let alternatives = &task.dependency.alternatives;
        if alternatives.iter().any(|relation| self.policy.omit.contains(&relation.name)) {
            return Ways::Satisfied;
        }
        let mut candidates = VecDeque::new();
        let mut omitted = false;
        for id in alternatives.iter().flat_map(|relation| self.universe.candidates(relation)) {
            if state.selected.contains_key(&id) {
                return Ways::Satisfied;
            }
            if self.policy.omit.contains(self.name(id)) {
                omitted = true;
            } else if !candidates.contains(&id) {
                candidates.push_back(id);
            }
        }
        if candidates.is_empty() && omitted {
            return Ways::Satisfied;
        }
        // In reverse, so that what is preferred for the first alternative ends up in front.
        for preferred in alternatives.iter().rev().filter_map(|relation| self.policy.prefer.get(&relation.name)) {
            if let Some(at) = candidates.iter().position(|id| self.name(*id) == preferred) {
                candidates.make_contiguous()[..=at].rotate_right(1);
            }
        }
        Ways::Candidates(candidates)
    }

    /// Selects a package if nothing selected is in its way.
    fn select(&self, state: &mut State<'a>, id: usize, origin: Origin) -> Result<(), Failure> {
        let package = &self.universe.packages[id];
        let conflicts = package.conflicts.iter().map(|relation| (relation, "conflicts with"));
        let breaks = package.breaks.iter().map(|relation| (relation, "breaks"));
        let refusals: Vec<Refusal<'a>> =
            conflicts.chain(breaks).map(|(relation, verb)| Refusal { package: id, relation, verb }).collect();
        let names: BTreeSet<&'a str> =
            package.provides.iter().map(|provided| &provided.name).chain([&package.name]).map(String::as_str).collect();

        state.selected.insert(id, origin);
        for refusal in &refusals {
            let present = state.present.get(refusal.relation.name.as_str()).into_iter().flatten();
            for other in present {
                self.check(state, *refusal, *other)?;
            }
        }
        for refusal in names.iter().filter_map(|name| state.refused.get(name)).flatten() {
            self.check(state, *refusal, id)?;
        }

        for name in names {
            state.present.entry(name).or_default().push(id);
        }
        for refusal in refusals {
            state.refused.entry(&refusal.relation.name).or_default().push(refusal);
        }
        let dependencies = package.pre_depends.iter().chain(&package.depends);
        state.forced.extend(dependencies.map(|dependency| Task { requester: Requester::Package(id), dependency }));
        Ok(())
    }

    /// Whether a package is what another one refuses to be installed with.
    fn check(&self, state: &State<'a>, refusal: Refusal<'a>, other: usize) -> Result<(), Failure> {
        if !self.universe.satisfies(other, refusal.relation) {
            return Ok(());
        }
        let mut blame = self.blame(state, Requester::Package(refusal.package));
        blame.append(&mut self.blame(state, Requester::Package(other)));
        let because = |id| self.chain(state, state.selected[&id].requester);
        let error = Box::new(Error::Conflict {
            package: self.name(refusal.package).to_owned(),
            because: because(refusal.package),
            relation: format!("{} {}", refusal.verb, refusal.relation),
            other: self.name(other).to_owned(),
            other_because: because(other),
        });
        Err(Failure { error, blame })
    }

    fn unsatisfiable(&self, state: &State<'a>, task: Task<'a>) -> Failure {
        let alternatives = &task.dependency.alternatives;
        let real = alternatives.iter().filter_map(|relation| self.universe.package(&relation.name));
        let available: Vec<String> = real.map(|package| format!("{} {}", package.name, package.version)).collect();
        let near = match &alternatives[..] {
            [relation, ..] if available.is_empty() => self.universe.near(&relation.name),
            _ => Vec::new(),
        };
        let needed_by = self.chain(state, task.requester);
        let wanted = task.dependency.to_string();
        let error = Box::new(Error::Unsatisfiable { wanted, available, near, needed_by });
        Failure { error, blame: self.blame(state, task.requester) }
    }

    /// The choices without which a requester would not be there.
    fn blame(&self, state: &State<'a>, requester: Requester) -> BTreeSet<usize> {
        ancestors(state, requester).filter_map(|id| state.selected[&id].level).collect()
    }

    fn chain(&self, state: &State<'a>, requester: Requester) -> Chain {
        let mut links: Vec<String> = ancestors(state, requester).map(|id| self.name(id).to_owned()).collect();
        let request = match ancestors(state, requester).last() {
            Some(id) => state.selected[&id].requester,
            None => requester,
        };
        links.extend(match request {
            Requester::Request(index) => Some(self.wanted[index].reason.clone()),
            Requester::Package(_) => None,
        });
        links.reverse();
        Chain(links)
    }

    fn resolution(&self, state: &State<'a>) -> Resolution {
        // The numbers of packages are in the order of their names.
        let packages = state.selected.iter().map(|(id, origin)| Selected {
            package: self.universe.packages[*id].clone(),
            because: self.chain(state, origin.requester),
        });
        Resolution { packages: packages.collect() }
    }

    fn name(&self, id: usize) -> &'a str {
        &self.universe.packages[id].name
    }
}

/// A package that requests something, the one that requested that, and so on up to the request.
fn ancestors<'s>(state: &'s State<'_>, requester: Requester) -> impl Iterator<Item = usize> + 's {
    let package = |requester| match requester {
        Requester::Package(id) => Some(id),
        Requester::Request(_) => None,
    };
    std::iter::successors(package(requester), move |id| package(state.selected[id].requester))
}

/// The number of letters to insert, remove or replace to turn one name into another, if it is at most `bound`.
fn distance(left: &str, right: &str, bound: usize) -> Option<usize> {
    if left.len().abs_diff(right.len()) > bound {
        return None;
    }
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, left) in left.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in right.bytes().enumerate() {
            let replaced = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().filter(|distance| *distance <= bound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::parse_packages;

    /// Packages in a short form, one a line: name, version, then fields between semicolons.
    fn universe(text: &str) -> Universe {
        let mut index = String::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let mut parts = line.split(';').map(str::trim);
            let (name, version) = parts.next().and_then(|head| head.split_once(' ')).expect("name and version");
            index +=
                &format!("Package: {name}\nVersion: {version}\nArchitecture: all\nFilename: {name}.deb\nSize: 1\n");
            index += &format!("SHA256: {}\n", "0".repeat(64));
            for field in parts {
                index += &format!("{field}\n");
            }
            index += "\n";
        }
        Universe::new(parse_packages(index.as_bytes(), "test", &["all"]).unwrap())
    }

    fn request(text: &str) -> Request {
        let relation: Relation = text.parse().unwrap();
        Request { name: relation.name, constraint: relation.constraint, reason: "recipe".to_owned() }
    }

    fn solve(universe: &Universe, wanted: &str, policy: &Policy) -> Result<String, String> {
        let wanted: Vec<Request> = wanted.split(", ").map(request).collect();
        match resolve(&wanted, universe, policy) {
            Ok(resolution) => {
                let names: Vec<&str> = resolution.packages.iter().map(|one| one.package.name.as_str()).collect();
                Ok(names.join(" "))
            }
            Err(err) => Err(err.to_string()),
        }
    }

    fn policy(omit: &str, prefer: &str) -> Policy {
        Policy {
            omit: omit.split_whitespace().map(str::to_owned).collect(),
            prefer: prefer
                .split_whitespace()
                .filter_map(|pair| pair.split_once('='))
                .map(|(name, chosen)| (name.to_owned(), chosen.to_owned()))
                .collect(),
        }
    }

    const BASE: &str = "
        app 1; Depends: lib (>= 2), mail | cron; Pre-Depends: base
        base 1; Essential: yes
        lib 2; Depends: app
        cron 1
        exim 1; Provides: mail
        postfix 1; Provides: mail (= 3); Conflicts: mail
        needs-mail-3 1; Depends: mail (>= 3)
        needs-postfix 1; Depends: postfix
        needs-newer 1; Depends: lib (>= 3)
        needs-missing 1; Depends: libb (>= 1) | nothing-like-it
        deep 1; Depends: deeper
        deeper 1; Depends: needs-missing
        picky 1; Breaks: exim (<< 2)
        pickier 1; Conflicts: exim (>> 2)
        foreign 1; Depends: lib:any, base:arm64
        qualified 1; Depends: lib:any, base:all
    ";

    #[test]
    fn resolutions() {
        let universe = universe(BASE);
        for (wanted, omit, prefer, expected) in [
            ("base", "", "", "base"),
            // A cycle, and the first provider by name.
            ("app", "", "", "app base exim lib"),
            ("app", "", "mail=postfix", "app base lib postfix"),
            ("app", "", "mail=cron", "app base cron lib"),
            ("app", "", "mail=base", "app base exim lib"),
            // What is selected anyway is taken, whatever comes first or is preferred.
            ("app, cron", "", "mail=exim", "app base cron lib"),
            ("app, needs-postfix", "", "", "app base lib needs-postfix postfix"),
            ("mail", "", "", "exim"),
            ("mail (>= 3)", "", "", "postfix"),
            ("needs-mail-3", "", "", "needs-mail-3 postfix"),
            ("app", "exim", "", "app base lib postfix"),
            ("app", "mail", "", "app base lib"),
            ("app", "lib cron", "", "app base"),
            ("needs-missing", "libb", "", "needs-missing"),
            ("needs-missing", "nothing-like-it", "", "needs-missing"),
            ("needs-mail-3", "postfix", "", "needs-mail-3"),
            // Breaks only some versions, and another choice avoids it.
            ("app, picky", "", "", "app base lib picky postfix"),
            ("app, pickier", "", "", "app base exim lib pickier"),
            ("qualified", "mail", "", "app base lib qualified"),
        ] {
            let result = solve(&universe, wanted, &policy(omit, prefer));
            assert_eq!(result.as_deref(), Ok(expected), "{wanted} without {omit:?}, prefer {prefer:?}");
        }
    }

    #[test]
    fn refusals() {
        let universe = universe(BASE);
        for (wanted, omit, expected) in [
            (
                "deep",
                "",
                "no package satisfies libb (>= 1) | nothing-like-it, similar names are lib \
                 (needed by recipe -> deep -> deeper -> needs-missing)",
            ),
            (
                "needs-newer",
                "",
                "no package satisfies lib (>= 3), there is only lib 2 (needed by recipe -> needs-newer)",
            ),
            ("foreign", "", "no package satisfies base:arm64, there is only base 1 (needed by recipe -> foreign)"),
            ("deeperr", "", "no package satisfies deeperr, similar names are deeper (needed by recipe)"),
            ("base (>= 2)", "", "no package satisfies base (>= 2), there is only base 1 (needed by recipe)"),
            ("app", "app", "app is requested (recipe) and omitted"),
            (
                "exim, needs-postfix",
                "",
                "postfix conflicts with mail and exim is selected: \
                 postfix for recipe -> needs-postfix, exim for recipe",
            ),
            ("exim, picky", "", "picky breaks exim (<< 2) and exim is selected: picky for recipe, exim for recipe"),
        ] {
            let result = solve(&universe, wanted, &policy(omit, ""));
            assert_eq!(result, Err(expected.to_owned()), "{wanted} without {omit:?}");
        }
    }

    #[test]
    fn chains() {
        let resolution = resolve(&[request("app")], &universe(BASE), &Policy::default()).unwrap();
        let chain = |name: &str| {
            let selected = resolution.packages.iter().find(|one| one.package.name == name).unwrap();
            selected.because.links().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(chain("app"), ["recipe"]);
        assert_eq!(chain("lib"), ["recipe", "app"]);
        assert_eq!(chain("exim"), ["recipe", "app"]);
    }

    #[test]
    fn one_version_of_each_name() {
        let packages = |text: &str, origin: &str| {
            let mut packages = universe(text).packages().to_vec();
            packages.iter_mut().for_each(|package| package.origin = origin.to_owned());
            packages
        };
        let stable = packages("a 1\n b 2\n c 1.0", "stable");
        let security = packages("a 1+deb13u1\n b 1\n c 1.0-0", "security");
        for [first, second] in [[&stable, &security], [&security, &stable]] {
            let universe = Universe::new(first.iter().chain(second).cloned().collect());
            assert_eq!(universe.package("a").unwrap().origin, "security");
            assert_eq!(universe.package("b").unwrap().origin, "stable");
            assert_eq!(universe.package("c").unwrap().origin, first[0].origin, "equal versions");
        }
    }

    /// A choice that fails deep below, and a pile of choices in between that have nothing to do with it.
    #[test]
    fn jumps_back_over_what_is_not_to_blame() {
        let mut text = String::from(
            "top 1; Depends: left | right
             left 1; Depends: left-a
             left-a 1; Depends: late-x | late-y
             late-x 1; Depends: clash
             late-y 1; Depends: clash
             right 1
             clash 1; Conflicts: pin
             pin 1\n",
        );
        for pile in 0..60 {
            text += &format!("pile{pile} 1; Depends: yes{pile} | no{pile}\nyes{pile} 1\nno{pile} 1\n");
        }
        let universe = universe(&text);
        let mut wanted: Vec<String> = vec!["pin".into(), "top".into()];
        wanted.extend((0..60).map(|pile| format!("pile{pile}")));
        let solved = solve(&universe, &wanted.join(", "), &Policy::default()).unwrap();
        assert!(solved.contains(" right ") && !solved.contains("left") && solved.contains(" yes59"), "{solved}");
        // Without a way out, the error is the first one met.
        let impossible = solve(&universe, &format!("{}, left", wanted.join(", ")), &Policy::default());
        let expected = "clash conflicts with pin and pin is selected: \
                        clash for recipe -> left -> left-a -> late-x, pin for recipe";
        assert_eq!(impossible, Err(expected.to_owned()));
    }

    /// Pigeons without enough holes: no jump helps, so the bound has to.
    #[test]
    fn the_search_is_bounded() {
        let mut text = String::new();
        for pigeon in 0..9 {
            let ways: Vec<String> = (0..8).map(|hole| format!("p{pigeon}h{hole}")).collect();
            text += &format!("p{pigeon} 1; Depends: {}\n", ways.join(" | "));
            for (hole, way) in ways.iter().enumerate() {
                text += &format!("{way} 1; Provides: hole{hole}; Conflicts: hole{hole}\n");
            }
        }
        let universe = universe(&text);
        let wanted: Vec<Request> = (0..9).map(|pigeon| request(&format!("p{pigeon}"))).collect();
        let err = resolve(&wanted, &universe, &Policy::default()).unwrap_err();
        let Error::SearchBound { tried, source } = err else { panic!("{err}") };
        assert_eq!(tried, MAX_ATTEMPTS);
        assert!(matches!(*source, Error::Conflict { .. }), "{source}");
        assert!(resolve(&wanted[..8], &universe, &Policy::default()).is_ok());
    }

    #[test]
    fn distances() {
        for (left, right, expected) in [
            ("abc", "abc", Some(0)),
            ("abc", "abd", Some(1)),
            ("abc", "ab", Some(1)),
            ("abc", "xabc", Some(1)),
            ("kitten", "sitting", Some(3)),
            ("kitten", "mittens", Some(2)),
            ("abc", "xyzw", None),
            ("a", "abcde", None),
        ] {
            assert_eq!(distance(left, right, 3), expected, "{left} {right}");
            assert_eq!(distance(right, left, 3), expected, "{right} {left}");
        }
    }
}
