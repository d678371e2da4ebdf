//! JSON objects read as Go's `encoding/json` reads them, because that is what decides which
//! configurations and leases a cluster of flannel nodes accepts: field names in any case, the last
//! of several winning, unknown fields ignored, `null` leaving a field as it was.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::shorten;

/// A field whose value is not of the type it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: expected {expected}, found {found}")]
pub struct FieldError {
    /// Path of the field, as `Backend.VNI`.
    pub field: String,
    /// What belongs there.
    pub expected: &'static str,
    /// The JSON found instead, shortened.
    pub found: String,
}

/// The fields of a JSON object, undecoded.
#[derive(Debug, Default)]
pub struct Object<'a> {
    path: &'static str,
    fields: Vec<(Cow<'a, str>, &'a RawValue)>,
}

impl<'a> Object<'a> {
    /// Reads `text`, which is an object or `null`. `path` stands before field names in errors: empty
    /// for the outermost object, else ending in a dot.
    pub(crate) fn parse(path: &'static str, text: &'a str) -> Result<Self, serde_json::Error> {
        let fields = serde_json::from_str::<Option<Fields<'a>>>(text)?;
        Ok(Self { path, fields: fields.map(|Fields(all)| all).unwrap_or_default() })
    }

    /// The undecoded value of a field.
    pub(crate) fn raw(&self, name: &str) -> Option<&'a RawValue> {
        let of_name = |(key, _): &&(Cow<'a, str>, &'a RawValue)| key.eq_ignore_ascii_case(name);
        self.fields.iter().rev().find(of_name).map(|(_, value)| *value)
    }

    /// A field's value; `None` when it is absent or `null`.
    pub(crate) fn get<T: DeserializeOwned>(
        &self,
        name: &str,
        expected: &'static str,
    ) -> Result<Option<T>, FieldError> {
        match self.raw(name) {
            None => Ok(None),
            Some(raw) => serde_json::from_str(raw.get()).map_err(|_| self.refuse(name, expected, raw.get())),
        }
    }

    /// A string field made into a `T`; `None` when it is absent. `null` is refused: that is what
    /// Go types with a decoder of their own do, as flannel's addresses and networks are.
    pub(crate) fn get_with<T>(
        &self,
        name: &str,
        expected: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, FieldError> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        let value = serde_json::from_str::<String>(raw.get()).ok().and_then(|text| parse(&text));
        value.map(Some).ok_or_else(|| self.refuse(name, expected, raw.get()))
    }

    /// The error that `found` is not what belongs into field `name`.
    pub(crate) fn refuse(&self, name: &str, expected: &'static str, found: &str) -> FieldError {
        FieldError { field: format!("{}{name}", self.path), expected, found: shorten(found, 60) }
    }
}

struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

/// A name borrows unless it contains escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some((Name(name), value)) = map.next_entry::<Name<'de>, &'de RawValue>()? {
                    fields.push((name, value));
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(All)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_any_case_last_wins_unknown_ignored() {
        let object = Object::parse("", r#"{"vni":1,"other":[{}],"VNI":2,"Vn\u0069":3}"#).unwrap();
        assert_eq!(object.get::<u32>("VNI", "a number").unwrap(), Some(3));
        assert_eq!(object.get::<u32>("MTU", "a number").unwrap(), None);
    }

    #[test]
    fn null_leaves_a_field_alone() {
        let object = Object::parse("", r#"{"VNI":null}"#).unwrap();
        assert_eq!(object.get::<u32>("VNI", "a number").unwrap(), None);
        assert!(Object::parse("", "null").unwrap().raw("VNI").is_none());
    }

    #[test]
    fn errors_name_the_field() {
        let object = Object::parse("Backend.", r#"{"vni":"1"}"#).unwrap();
        let error = object.get::<u32>("VNI", "a number").unwrap_err();
        assert_eq!(error.to_string(), r#"Backend.VNI: expected a number, found "1""#);
    }

    #[test]
    fn only_objects() {
        for text in ["", "[]", "1", "{", r#"{"a":1}x"#, "\u{0}"] {
            assert!(Object::parse("", text).is_err(), "{text:?}");
        }
    }
}
