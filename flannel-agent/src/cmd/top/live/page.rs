//! What stands on the terminal.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Modifier, Style, Stylize as _},
    text::{Line, Span},
    widgets::{Block, Cell, Row, Table, TableState, Tabs},
};

use crate::cmd::{
    output::colours,
    top::{
        rates::{Order, Rates},
        screen::{View, headline, views},
    },
};

/// Lines of a table beside its rows: its title and its header.
const HEAD: u16 = 2;
/// Names of the tables, behind the one that shows them all.
const TABLES: [&str; 5] = ["all", "peers", "pods", "reasons", "programs"];

/// Each key, and what it does, as the last line says; `keys` does it.
const KEYS: &str = "q end   ←→ tables   ↑↓ rows   s sort   space hold";

/// What is shown, and how.
pub(super) struct Page {
    node: String,
    /// Seconds between two looks.
    every: u64,
    /// What was found last; none before the first look is over.
    rates: Option<Rates>,
    /// Index in [`TABLES`].
    table: usize,
    /// The row that is marked in a table that is shown alone, and the first that is seen.
    rows: TableState,
    order: Order,
    is_held: bool,
}

impl Page {
    pub(super) fn new(node: String, every: u64) -> Self {
        Self {
            node,
            every,
            rates: None,
            table: 0,
            rows: TableState::default(),
            order: Order::Packets,
            is_held: false,
        }
    }

    /// Takes what was found, unless the page is held.
    pub(super) fn show(&mut self, rates: Rates) {
        if !self.is_held {
            self.rates = Some(rates);
        }
    }

    /// Shows the next table, or with -1 the one before.
    pub(super) fn turn(&mut self, by: isize) {
        let count = TABLES.len().cast_signed();
        self.table = (self.table.cast_signed() + by).rem_euclid(count).cast_unsigned();
        self.rows = TableState::default();
    }

    /// Marks the row so much further down.
    pub(super) fn move_by(&mut self, rows: isize) {
        let from = self.rows.selected().map_or(-1, usize::cast_signed);
        self.rows.select(Some(from.saturating_add(rows).max(0).cast_unsigned()));
    }

    /// Sorts by the next of the orders.
    pub(super) fn sort_otherwise(&mut self) {
        self.order = self.order.next();
    }

    /// Keeps what is shown, or goes on.
    pub(super) fn hold(&mut self) {
        self.is_held = !self.is_held;
    }

    /// Draws all of it.
    pub(super) fn draw(&mut self, frame: &mut Frame<'_>) {
        let [title, tabs, body, keys] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Min(0),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        let styled = |style: Style| if colours() { style } else { Style::default() };
        frame.render_widget(Line::from(vec![self.node.as_str().bold(), Span::raw(self.state())]), title);
        let shown = Tabs::new(TABLES)
            .select(self.table)
            .padding("", "  ")
            .divider("")
            .highlight_style(Style::default().add_modifier(Modifier::REVERSED));
        frame.render_widget(shown, tabs);
        frame.render_widget(Line::styled(KEYS, styled(Style::default().dim())), keys);
        let Some(rates) = &self.rates else { return };
        let mut rates = rates.clone();
        rates.sort(self.order);
        let views = views(&rates);
        match self.table.checked_sub(1) {
            None => draw_all(frame, body, &views),
            Some(alone) => {
                let Some(view) = views.get(alone) else { return };
                // The last row is the last, however far the key was pressed.
                if let Some(selected) = self.rows.selected() {
                    self.rows.select(Some(selected.min(view.rows.len().saturating_sub(1))));
                }
                frame.render_stateful_widget(table(view), body, &mut self.rows);
            }
        }
    }

    /// What the first line says behind the node's name.
    fn state(&self) -> String {
        let found = match &self.rates {
            Some(rates) => headline(rates),
            None => format!("looking for {} s", self.every),
        };
        let held = if self.is_held { "; held" } else { "" };
        format!(": {found}; by {}{held}", self.order.label())
    }
}

/// Each table that has rows, one below the other, the room shared by their lengths.
fn draw_all(frame: &mut Frame<'_>, body: Rect, views: &[View]) {
    let shown: Vec<&View> = views.iter().filter(|view| !view.rows.is_empty()).collect();
    let lines = |view: &View| HEAD.saturating_add(view.rows.len().try_into().unwrap_or(u16::MAX));
    // One line between two tables.
    let heights = shown.iter().map(|view| Constraint::Max(lines(view).saturating_add(1)));
    let places = Layout::vertical(heights.chain([Constraint::Fill(1)])).split(body);
    for (view, place) in shown.into_iter().zip(places.iter()) {
        frame.render_widget(table(view), *place);
    }
}

/// A table with its title, each column as wide as what it holds.
fn table(view: &View) -> Table<'_> {
    let width = |column: usize| {
        let cells = view.rows.iter().filter_map(|row| row.get(column));
        let names = view.columns.get(column).map(|name| name.chars().count());
        let longest = cells.map(|cell| cell.chars().count()).chain(names).max().unwrap_or_default();
        Constraint::Length(longest.try_into().unwrap_or(u16::MAX))
    };
    let header = view.columns.iter().map(|name| Cell::from(name.to_uppercase()));
    Table::new(
        view.rows.iter().map(|row| Row::new(row.iter().map(String::as_str))),
        (0..view.columns.len()).map(width),
    )
    .column_spacing(2)
    .header(Row::new(header))
    .block(Block::new().title(Line::from(view.title).bold()))
    .row_highlight_style(Style::default().add_modifier(Modifier::REVERSED))
}

#[cfg(test)]
mod tests {
    use crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers};
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;
    use crate::cmd::top::{
        live::keys::Answer,
        rates::{Rate, Row},
    };

    fn found() -> Rates {
        let row = |name: String, packets: f64, bits: f64| Row {
            name,
            out: Rate { packets, bits },
            into: Rate::default(),
            fast_share: 1.0,
        };
        let pods = (0..40).map(|n| row(format!("10.244.1.{n}"), f64::from(n), 1e6 - f64::from(n)));
        Rates {
            peers: vec![row("node2".into(), 5.0, 40.0)],
            pods: pods.collect(),
            fast_share: Some(0.5),
            ..Rates::default()
        }
    }

    fn text(page: &mut Page, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| page.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    fn press(page: &mut Page, code: KeyCode) -> Answer {
        page.answer(&Event::Key(KeyEvent::new(code, KeyModifiers::NONE)))
    }

    #[test]
    fn keys_turn_sort_hold_and_end() {
        let mut page = Page::new("node1".into(), 2);
        assert!(text(&mut page, 100, 30).contains("node1: looking for 2 s"));
        page.show(found());
        let all = text(&mut page, 100, 30);
        assert!(all.contains("by peer") && all.contains("node2") && all.contains("by pod"), "{all}");
        assert!(all.contains("50.0 % of the packets"), "{all}");

        press(&mut page, KeyCode::Right);
        press(&mut page, KeyCode::Right);
        let pods = text(&mut page, 100, 12);
        assert!(!pods.contains("by peer") && pods.contains("10.244.1.39"), "{pods}");
        assert!(!pods.contains("10.244.1.0 "), "the busiest come first: {pods}");
        press(&mut page, KeyCode::End);
        let last = text(&mut page, 100, 12);
        assert!(last.contains("10.244.1.0 "), "{last}");
        press(&mut page, KeyCode::Home);
        press(&mut page, KeyCode::Char('s'));
        let by_bits = text(&mut page, 100, 12);
        assert!(by_bits.contains("10.244.1.0 ") && by_bits.contains("by bits"), "{by_bits}");

        press(&mut page, KeyCode::Char(' '));
        page.show(Rates::default());
        let held = text(&mut page, 100, 12);
        assert!(held.contains("10.244.1.0 ") && held.contains("held"), "{held}");
        press(&mut page, KeyCode::Left);
        press(&mut page, KeyCode::Left);
        press(&mut page, KeyCode::Left);
        assert!(text(&mut page, 100, 12).contains("node1"));

        assert_eq!(press(&mut page, KeyCode::Char('x')), Answer::Draw);
        assert_eq!(press(&mut page, KeyCode::Char('q')), Answer::End);
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(page.answer(&Event::Key(interrupt)), Answer::End);
    }

    /// However small the window, and however often a key is pressed.
    #[test]
    fn any_window_will_do() {
        let mut page = Page::new("node1".into(), 2);
        page.show(found());
        for _ in 0..TABLES.len() {
            for (width, height) in [(1, 1), (2, 1), (3, 4), (20, 5), (300, 100)] {
                press(&mut page, KeyCode::PageDown);
                press(&mut page, KeyCode::Up);
                text(&mut page, width, height);
            }
            press(&mut page, KeyCode::Tab);
        }
    }
}
