//! The compiled CRI descriptor against the table of the published interface, row by row and both
//! ways: nothing missing, nothing renumbered, nothing extra.
#![forbid(unsafe_code)]
#![cfg(feature = "cri")]
#![expect(clippy::panic, reason = "a descriptor of another shape fails the test")]

use std::collections::BTreeSet;

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    FileDescriptorSet, ServiceDescriptorProto,
};

const TABLE: &str = include_str!("../cri/v1/interface.tsv");
const PACKAGE: &str = "runtime.v1";

/// The descriptor as rows of the table.
#[derive(Default)]
struct Rows(BTreeSet<String>);

impl Rows {
    fn add(&mut self, cells: &[&str]) {
        let row = cells.join("\t");
        assert!(self.0.insert(row.clone()), "twice: {row}");
    }

    fn file(&mut self, file: &FileDescriptorProto) {
        assert_eq!(file.package(), PACKAGE);
        assert_eq!(file.syntax(), "proto3");
        assert!(file.dependency.is_empty() && file.extension.is_empty());
        file.service.iter().for_each(|s| self.service(s));
        file.message_type.iter().for_each(|m| self.message("", m));
        file.enum_type.iter().for_each(|e| self.values("", e));
    }

    fn service(&mut self, service: &ServiceDescriptorProto) {
        for rpc in &service.method {
            assert!(!rpc.client_streaming(), "{}", rpc.name());
            let stream = if rpc.server_streaming() { "stream " } else { "" };
            let response = format!("{stream}{}", local(rpc.output_type()));
            self.add(&["rpc", service.name(), rpc.name(), &local(rpc.input_type()), &response]);
        }
    }

    fn message(&mut self, outer: &str, message: &DescriptorProto) {
        let name = format!("{outer}{}", message.name());
        assert!(message.oneof_decl.is_empty(), "{name}: a oneof is not in the table");
        if message.field.is_empty() {
            self.add(&["message", &name, "(no fields)"]);
        }
        for field in &message.field {
            let (label, kind) = shape(message, field);
            let number = field.number().to_string();
            self.add(&["field", &name, field.name(), &number, label, &kind]);
        }
        let inner = format!("{name}.");
        message.enum_type.iter().for_each(|e| self.values(&inner, e));
        for nested in message.nested_type.iter().filter(|n| !is_map_entry(n)) {
            self.message(&inner, nested);
        }
    }

    fn values(&mut self, outer: &str, values: &EnumDescriptorProto) {
        let name = format!("{outer}{}", values.name());
        for value in &values.value {
            self.add(&["value", &name, value.name(), &value.number().to_string()]);
        }
    }
}

/// The label and type columns.
fn shape(message: &DescriptorProto, field: &FieldDescriptorProto) -> (&'static str, String) {
    if field.label() != Label::Repeated {
        return ("single", type_name(field));
    }
    let entry = message.nested_type.iter().find(|n| {
        is_map_entry(n) && field.type_name().ends_with(&format!(".{}.{}", message.name(), n.name()))
    });
    match entry.map(|e| e.field.as_slice()) {
        Some([key, value]) => ("map", format!("map<{},{}>", type_name(key), type_name(value))),
        Some(other) => panic!("a map entry of {} fields", other.len()),
        None => ("repeated", type_name(field)),
    }
}

fn is_map_entry(message: &DescriptorProto) -> bool {
    message.options.as_ref().is_some_and(|o| o.map_entry())
}

fn type_name(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum => local(field.type_name()),
        // "TYPE_INT32"
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    }
}

fn local(full: &str) -> String {
    let local = full.strip_prefix(&format!(".{PACKAGE}."));
    local.unwrap_or_else(|| panic!("{full} is not of {PACKAGE}")).to_owned()
}

#[test]
fn the_interface_is_the_published_one() {
    let set = FileDescriptorSet::decode(berth_proto::cri::DESCRIPTOR).unwrap();
    let mut ours = Rows::default();
    set.file.iter().for_each(|file| ours.file(file));
    let table: BTreeSet<String> =
        TABLE.lines().filter(|l| !l.starts_with('#')).map(str::to_owned).collect();
    assert!(table.len() > 600, "the table is there");
    let missing: Vec<_> = table.difference(&ours.0).collect();
    let extra: Vec<_> = ours.0.difference(&table).collect();
    assert!(missing.is_empty() && extra.is_empty(), "missing: {missing:#?}\nextra: {extra:#?}");
}
