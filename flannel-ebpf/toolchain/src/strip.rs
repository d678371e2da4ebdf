//! An object without what only debuggers read: five of six bytes, which every agent would carry twice.
//!
//! Types, lines of source and relocations of BTF stay: the kernel and aya read them, and the verifier's log names lines.

use std::{fs, path::Path};

use object::{
    build::elf::{Builder, SectionData},
    elf::SHT_STRTAB,
};

use crate::error::{Error, Result};

/// Writes the object `from` to `to` without DWARF.
pub(crate) fn without_debug_information(from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(from).map_err(|source| Error::File { path: from.to_owned(), source })?;
    let stripped = stripped(&bytes)
        .map_err(|error| Error::NotBpf { object: from.to_owned(), reason: error.to_string() })?;
    fs::write(to, stripped).map_err(|source| Error::File { path: to.to_owned(), source })
}

fn stripped(bytes: &[u8]) -> std::result::Result<Vec<u8>, object::build::Error> {
    let mut object = Builder::read(bytes)?;
    for section in &mut object.sections {
        let name = section.name.as_slice();
        section.delete |= name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
    }
    // LLVM keeps the names of sections among those of symbols, which cannot be written.
    if !object.sections.iter().any(|section| matches!(section.data, SectionData::SectionString)) {
        let names = object.sections.add();
        names.name = b".shstrtab"[..].into();
        names.sh_type = SHT_STRTAB;
        names.sh_addralign = 1;
        names.data = SectionData::SectionString;
    }
    object.delete_orphans();
    let mut out = Vec::new();
    object.write(&mut out)?;
    Ok(out)
}
