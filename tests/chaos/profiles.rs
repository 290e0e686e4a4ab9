//! A model of the profiles that a round must lead to, compared with the simulator's attribute by
//! attribute.
//!
//! The newest value of an attribute wins. The model knows when each value was stated, but not when
//! its event arrived: an event without a time of its own counts from its arrival, and one that
//! arrives after its job is completed is sent with the next call of its signup, if there is one.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Map, Value};
use uuid::Uuid;

/// A person of a round.
#[derive(Debug, Clone)]
pub(crate) struct Person {
    pub(crate) id: Option<String>,
    /// Whether only confirmations state the id.
    pub(crate) is_id_late: bool,
    pub(crate) email: String,
}

impl Person {
    /// The identifier of a signup that states the person whole.
    pub(crate) fn identifier(&self) -> &str {
        self.id.as_deref().unwrap_or(&self.email)
    }
}

/// The values that an event states about a person.
#[derive(Debug, Clone)]
pub(crate) struct Statement {
    /// The index of the person.
    pub(crate) person: usize,
    pub(crate) signup: Uuid,
    pub(crate) phase: &'static str,
    pub(crate) event_id: String,
    /// In seconds since 1970. `None` if the event counts from its arrival.
    pub(crate) time: Option<i64>,
    /// The values by the name of the profile's attribute.
    pub(crate) values: Map<String, Value>,
}

/// The statements of a round, and the people that they are about.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) people: Vec<Person>,
    pub(crate) statements: Vec<Statement>,
}

/// The value of an attribute that an event states.
struct Candidate<'a> {
    value: &'a Value,
    /// An event without a time arrives after all times of the model.
    time: i64,
    /// Whether a completed job has sent it for sure.
    is_sent: bool,
}

impl Model {
    /// Compares the profiles with the model. `completed` are the completed jobs: signup and phase.
    pub(crate) fn violations(
        &self,
        profiles: &Value,
        completed: &HashSet<(Uuid, String)>,
    ) -> Vec<String> {
        let profiles = profiles.as_array().expect("a list");
        let by_email: HashMap<_, Vec<_>> = profiles.iter().fold(HashMap::new(), |mut all, one| {
            all.entry(one["attributes"]["email"].as_str()).or_insert_with(Vec::new).push(one);
            all
        });
        let mut violations = Vec::new();
        for (index, person) in self.people.iter().enumerate() {
            let found = by_email.get(&Some(person.email.as_str())).map_or(&[][..], Vec::as_slice);
            if found.len() > 1 {
                violations.push(format!("{} profiles of {person:?}: {found:?}", found.len()));
            }
            let nothing = Map::new();
            let profile = found.first().and_then(|one| one["attributes"].as_object());
            let profile = profile.unwrap_or(&nothing);
            for (name, candidates) in self.candidates(index, completed) {
                let why = wrong_value(profile.get(name), &candidates);
                violations.extend(why.map(|why| format!("{name} of {person:?} {why}")));
            }
        }
        violations
    }

    /// The values that were stated about a person, by attribute.
    fn candidates(
        &self,
        person: usize,
        completed: &HashSet<(Uuid, String)>,
    ) -> BTreeMap<&str, Vec<Candidate<'_>>> {
        let mut events_of_job: HashMap<_, HashSet<_>> = HashMap::new();
        for one in &self.statements {
            events_of_job.entry((one.signup, one.phase)).or_default().insert(&one.event_id);
        }
        let mut candidates: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for one in self.statements.iter().filter(|one| one.person == person) {
            // The first event of a job is sent with its call. Of several, any may be the first.
            let is_only_one = events_of_job[&(one.signup, one.phase)].len() == 1;
            let is_sent = is_only_one && completed.contains(&(one.signup, one.phase.to_owned()));
            for (name, value) in &one.values {
                let time = one.time.unwrap_or(i64::MAX);
                let candidate = Candidate { value, time, is_sent };
                candidates.entry(name.as_str()).or_default().push(candidate);
            }
        }
        candidates
    }
}

/// What is wrong with the value of an attribute, if it is wrong.
fn wrong_value(found: Option<&Value>, candidates: &[Candidate<'_>]) -> Option<String> {
    let newest_sent = candidates.iter().filter(|one| one.is_sent).map(|one| one.time).max();
    let Some(found) = found else {
        return newest_sent.map(|_| "is missing".to_owned());
    };
    let stated = candidates.iter().filter(|one| is_equal(one.value, found));
    match stated.map(|one| one.time).max() {
        None => Some(format!("is {found}, which nobody stated")),
        Some(time) if newest_sent.is_some_and(|newest| newest > time) => {
            Some(format!("is {found}, stated at {time}, although {newest_sent:?} is newer"))
        }
        Some(_) => None,
    }
}

/// Whether two values are equal. Of numbers, only the value counts: 50 is 50.0.
fn is_equal(one: &Value, other: &Value) -> bool {
    one == other || one.is_number() && one.as_f64() == other.as_f64()
}

#[test]
fn planted_faults_of_a_profile_are_found() {
    use serde_json::json;
    let signup = Uuid::from_u128(7);
    let statement = |phase, time, phone: &str| Statement {
        person: 0,
        signup,
        phase,
        event_id: phone.to_owned(),
        time,
        values: Map::from_iter([("phone".to_owned(), json!(phone))]),
    };
    let people = vec![Person { id: None, is_id_late: false, email: "a@example.com".to_owned() }];
    let statements = vec![statement("initial", Some(1), "1"), statement("enriched", Some(2), "2")];
    let model = Model { people, statements };
    let both = HashSet::from([(signup, "initial".to_owned()), (signup, "enriched".to_owned())]);
    let violations = |phone: Value| {
        let profile = json!([{ "attributes": { "email": "a@example.com", "phone": phone } }]);
        model.violations(&profile, &both).len()
    };
    assert_eq!((violations(json!("2")), violations(json!("1")), violations(json!("3"))), (0, 1, 1));
    assert_eq!(model.violations(&json!([]), &both).len(), 1, "it is missing");
    let one = HashSet::from([(signup, "initial".to_owned())]);
    let older = json!([{ "attributes": { "email": "a@example.com", "phone": "1" } }]);
    assert_eq!(model.violations(&older, &one).len(), 0, "the newer one is not completed");
    let twice = json!([older[0].clone(), older[0].clone()]);
    assert_eq!(model.violations(&twice, &one).len(), 1, "two people of one address");
}
