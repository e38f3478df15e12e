//! The older API level against the project's own table of the newer one: what an older kubelet
//! says must mean the same here.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use berth_old_cri::DESCRIPTOR;
use prost::Message;
use prost_types::field_descriptor_proto::Type;
use prost_types::{FieldDescriptorProto, FileDescriptorSet};

const TABLE: &str = include_str!("../../../proto/cri/v1/interface.tsv");

/// Message and number to name and type, of every field in the table.
fn table() -> HashMap<(&'static str, i32), (&'static str, &'static str)> {
    let rows = TABLE.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split('\t').collect();
        let ["field", message, name, number, _, kind] = cells[..] else { return None };
        Some(((message, number.parse().ok()?), (name, kind)))
    });
    rows.collect()
}

/// As the table writes it; the inner parts of maps are not looked at.
fn type_name(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum => field.type_name().replace(".runtime.v1.", ""),
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    }
}

#[test]
fn every_old_field_keeps_its_number_name_and_type() {
    let table = table();
    let set = FileDescriptorSet::decode(DESCRIPTOR).unwrap();
    let mut compared = 0;
    for message in set.file.iter().flat_map(|f| &f.message_type) {
        for field in &message.field {
            let key = (message.name(), field.number());
            let Some((name, kind)) = table.get(&key) else { panic!("{key:?} is gone") };
            assert_eq!(field.name(), *name, "{key:?}");
            let old = type_name(field);
            // The same on the wire: an environment's value was a text, and is bytes now.
            let widened = (old.as_str(), *kind) == ("string", "bytes");
            if !kind.starts_with("map<") && !widened {
                assert_eq!(old, *kind, "{key:?}");
            }
            compared += 1;
        }
    }
    assert!(compared > 400, "only {compared} fields compared");
    assert!(compared < table.len(), "the old interface is no older");
}

#[test]
fn every_old_call_is_still_there() {
    let set = FileDescriptorSet::decode(DESCRIPTOR).unwrap();
    let services: Vec<_> = set.file.iter().flat_map(|f| &f.service).collect();
    assert_eq!(services.len(), 2);
    for service in services {
        for rpc in &service.method {
            let row = format!("rpc\t{}\t{}\t", service.name(), rpc.name());
            assert!(TABLE.contains(&row), "{row}");
        }
    }
}
