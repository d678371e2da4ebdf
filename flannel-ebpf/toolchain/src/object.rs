//! The object file: what it holds, and whether the kernel will get what it needs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use object::{
    Architecture, BinaryFormat, Object as _, ObjectSection as _, ObjectSymbol as _, SectionFlags, SymbolKind,
    elf,
};

use crate::{Error, Result};

/// An object file for the kernel.
#[derive(Clone, Debug)]
pub struct Object {
    /// The file.
    pub path: PathBuf,
    /// The size of the file.
    pub size: u64,
    /// Its sections, in order.
    pub sections: Vec<Section>,
    /// Its entry points, in order of their sections.
    pub programs: Vec<Program>,
}

/// A section of the object.
#[derive(Clone, Debug)]
pub struct Section {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
}

/// An entry point of the object.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// The section, which tells the loader the type of program.
    pub section: String,
    /// How many instructions of eight bytes.
    pub instructions: u64,
}

impl Object {
    /// Reads what the file holds.
    pub fn read(path: &Path) -> Result<Self> {
        let data = fs::read(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
        let not_bpf = |reason: String| Error::NotBpf { object: path.to_owned(), reason };
        let file = object::File::parse(&*data).map_err(|error| not_bpf(error.to_string()))?;
        if file.format() != BinaryFormat::Elf || file.architecture() != Architecture::Bpf {
            return Err(not_bpf(format!("it is {:?} for {:?}", file.format(), file.architecture())));
        }
        let mut sections = Vec::new();
        let mut programs = Vec::new();
        for section in file.sections() {
            let name = section.name().map_err(|error| not_bpf(error.to_string()))?.to_owned();
            // Functions that programs call lie in .text; the loader takes every other section of code for programs.
            if is_code(section.flags()) && name != ".text" {
                let functions = file.symbols().filter(|symbol| {
                    symbol.kind() == SymbolKind::Text && symbol.section_index() == Some(section.index())
                });
                programs.extend(functions.map(|symbol| Program {
                    name: symbol.name().unwrap_or_default().to_owned(),
                    section: name.clone(),
                    instructions: symbol.size() / 8,
                }));
            }
            sections.push(Section { name, size: section.size() });
        }
        Ok(Self { path: path.to_owned(), size: data.len() as u64, sections, programs })
    }

    /// Whether the object has what the loader, the verifier and bpftool rely on.
    pub fn verify(&self) -> Result<()> {
        self.verify_types()?;
        self.require(".maps", "the maps' definitions")?;
        self.require(
            "license",
            "without one that is GPL-compatible the kernel refuses the helpers that the programs call",
        )
    }

    /// Whether it holds a program, and types.
    pub(crate) fn verify_types(&self) -> Result<()> {
        if self.programs.is_empty() {
            return Err(Error::NotBpf {
                object: self.path.clone(),
                reason: "it holds no program".to_owned(),
            });
        }
        self.require(
            ".BTF",
            "types, by which maps and programs are found and shown; the linker makes it from debug information",
        )
    }

    fn require(&self, section: &'static str, meaning: &'static str) -> Result<()> {
        if self.sections.iter().any(|present| present.name == section && present.size > 0) {
            return Ok(());
        }
        Err(Error::NoSection { object: self.path.clone(), section, meaning })
    }
}

fn is_code(flags: SectionFlags) -> bool {
    matches!(flags, SectionFlags::Elf { sh_flags } if sh_flags & u64::from(elf::SHF_EXECINSTR) != 0)
}
