//! What keys do.

use crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::page::Page;

/// What follows from a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The page is drawn again.
    Draw,
    /// The user has seen enough.
    End,
}

impl Page {
    /// Does what `event` asks for; what has no meaning here changes nothing.
    pub(super) fn answer(&mut self, event: &Event) -> Answer {
        let Event::Key(KeyEvent {
            code, modifiers, kind: KeyEventKind::Press | KeyEventKind::Repeat, ..
        }) = event
        else {
            return Answer::Draw;
        };
        // The terminal does not make a signal of it while keys are read.
        let is_interrupt = modifiers.contains(KeyModifiers::CONTROL) && *code == KeyCode::Char('c');
        match code {
            _ if is_interrupt => return Answer::End,
            KeyCode::Char('q') | KeyCode::Esc => return Answer::End,
            KeyCode::Right | KeyCode::Tab | KeyCode::Char('l') => self.turn(1),
            KeyCode::Left | KeyCode::BackTab | KeyCode::Char('h') => self.turn(-1),
            KeyCode::Down | KeyCode::Char('j') => self.move_by(1),
            KeyCode::Up | KeyCode::Char('k') => self.move_by(-1),
            KeyCode::PageDown => self.move_by(10),
            KeyCode::PageUp => self.move_by(-10),
            KeyCode::Home => self.move_by(isize::MIN),
            KeyCode::End => self.move_by(isize::MAX),
            KeyCode::Char('s') => self.sort_otherwise(),
            KeyCode::Char(' ' | 'p') => self.hold(),
            _ => {}
        }
        Answer::Draw
    }
}
