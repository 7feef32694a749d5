//! The full screen of `monitor`: curves of each node, and its pods on request.
//!
//! Drawing is a pure function of [`Screen`]; the terminal is given back on every way out, a panic
//! included.

use std::collections::{BTreeMap, VecDeque};

use crossterm::event::{Event, EventStream, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use futures::StreamExt;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Sparkline, Table, TableState};
use timonier_proto::v1::{MonitorFrame, NodeSample};

use super::{Feed, News, is_fresh, percent, trouble};
use crate::context::Ctx;
use crate::error::{Outcome, fail};

/// Readings kept of each node: the widest terminal's worth.
const READINGS_MAX: usize = 600;
/// Height of one node's box in the overview.
const NODE_ROWS: u16 = 4;
const NODE_ROWS_OPEN: u16 = 8;
const KEYS: &str = " up/down choose   Enter pods   Esc back   q quit ";

/// Runs until `q`, Ctrl-C or a failure that no waiting mends.
pub(super) async fn run(ctx: &Ctx, mut feed: Feed) -> Outcome {
    if !ctx.out.terminal {
        return Err(fail("monitor --tui needs a terminal")
            .hint("without --tui the table can go to a file or a pipe"));
    }
    // A master that does not answer is told in plain text, before the screen is taken.
    let mut screen = Screen::default();
    if let News::Frame(frame) = feed.next().await? {
        screen.take(frame);
    }
    let restore = Restore;
    let taken = |error: std::io::Error| fail(format!("take the terminal: {error}"));
    let mut terminal = ratatui::try_init().map_err(taken)?;
    let mut keys = EventStream::new();
    let ended = loop {
        if let Err(error) = terminal.draw(|frame| screen.draw(frame)) {
            break Err(fail(format!("draw on the terminal: {error}")));
        }
        tokio::select! {
            news = feed.next() => match news {
                Ok(News::Frame(frame)) => screen.take(frame),
                Ok(News::Lost(why)) => screen.gap = Some(why),
                Ok(News::Back) => screen.gap = None,
                Err(failure) => break Err(failure),
            },
            event = keys.next() => match event {
                Some(Ok(Event::Key(key))) if key.kind != KeyEventKind::Release => {
                    if screen.press(key) {
                        break Ok(());
                    }
                }
                // A resize draws anew, like everything else.
                Some(Ok(_)) => {}
                Some(Err(error)) => break Err(fail(format!("read the keys: {error}"))),
                None => break Ok(()),
            },
            stop = crate::interrupted() => break stop,
        }
    };
    drop(restore);
    ended
}

/// Gives the terminal back when dropped.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// CPU and memory in percent, oldest first.
type Readings = VecDeque<(f32, f32)>;

/// What is on the screen.
#[derive(Default)]
struct Screen {
    nodes: Vec<NodeSample>,
    unknown: Vec<String>,
    readings: BTreeMap<String, Readings>,
    /// Index in `nodes`.
    chosen: usize,
    /// The chosen node's pods are shown.
    open: bool,
    pods: TableState,
    /// Why no frames come, while none do.
    gap: Option<String>,
}

impl Screen {
    fn take(&mut self, frame: MonitorFrame) {
        let chosen = self.nodes.get(self.chosen).map(|node| node.name.clone());
        self.nodes = frame.nodes;
        self.nodes.sort_by(|a, b| a.name.cmp(&b.name));
        self.unknown = frame.unknown_nodes;
        let again = |name| self.nodes.iter().position(|node| node.name == name);
        match chosen.and_then(again) {
            Some(index) => self.chosen = index,
            None => (self.chosen, self.open) = (0, false),
        }
        self.readings.retain(|name, _| self.nodes.iter().any(|node| node.name == *name));
        for node in self.nodes.iter_mut() {
            let usage = |pod: &timonier_proto::v1::PodSample| {
                pod.usage.as_ref().map_or(0, |usage| usage.cpu_millis)
            };
            node.pods.sort_by(|a, b| {
                usage(b)
                    .cmp(&usage(a))
                    .then_with(|| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)))
            });
            let Some(host) = node.usage.filter(|_| is_fresh(node)) else { continue };
            let readings = self.readings.entry(node.name.clone()).or_default();
            if readings.len() == READINGS_MAX {
                readings.pop_front();
            }
            readings.push_back((percent(host.cpu_percent), percent(host.memory_percent)));
        }
    }

    /// True when the person wants to leave.
    fn press(&mut self, key: KeyEvent) -> bool {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('q') => return true,
            KeyCode::Char('c') if control => return true,
            KeyCode::Esc | KeyCode::Backspace | KeyCode::Left if self.open => self.open = false,
            KeyCode::Esc => return true,
            KeyCode::Enter | KeyCode::Right if !self.nodes.is_empty() => {
                self.open = true;
                self.pods = TableState::default();
            }
            KeyCode::Up | KeyCode::Char('k') if self.open => self.pods.scroll_up_by(1),
            KeyCode::Down | KeyCode::Char('j') if self.open => self.pods.scroll_down_by(1),
            KeyCode::Up | KeyCode::Char('k') => self.chosen = self.chosen.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => {
                self.chosen = (self.chosen + 1).min(self.nodes.len().saturating_sub(1));
            }
            KeyCode::Home => self.chosen = 0,
            KeyCode::End => self.chosen = self.nodes.len().saturating_sub(1),
            _ => {}
        }
        false
    }

    fn draw(&mut self, frame: &mut Frame) {
        let [body, foot] =
            Layout::vertical([Constraint::Min(1), Constraint::Length(1)]).areas(frame.area());
        if self.nodes.is_empty() {
            frame.render_widget(Paragraph::new("no node to show"), body);
        } else if self.open {
            self.draw_pods(frame, body);
        } else {
            self.draw_nodes(frame, body);
        }
        frame.render_widget(Paragraph::new(self.foot()), foot);
    }

    fn foot(&self) -> Line<'_> {
        let warning = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
        if let Some(why) = &self.gap {
            return Line::styled(format!(" {why}; trying again "), warning);
        }
        if !self.unknown.is_empty() {
            return Line::styled(format!(" no such node: {} ", self.unknown.join(", ")), warning);
        }
        Line::styled(KEYS, Style::new().add_modifier(Modifier::DIM))
    }

    /// As many boxes as fit, the chosen one among them.
    fn draw_nodes(&self, frame: &mut Frame, area: Rect) {
        let fitting = usize::from((area.height / NODE_ROWS).max(1));
        let first = (self.chosen + 1).saturating_sub(fitting);
        let shown = self.nodes.iter().enumerate().skip(first).take(fitting);
        for (row, (index, node)) in shown.enumerate() {
            let offset = u16::try_from(row).unwrap_or(u16::MAX).saturating_mul(NODE_ROWS);
            let place = Rect { y: area.y + offset, height: NODE_ROWS, ..area }.intersection(area);
            self.draw_node(frame, place, node, index == self.chosen);
        }
    }

    fn draw_node(&self, frame: &mut Frame, area: Rect, node: &NodeSample, chosen: bool) {
        let style = match (chosen, node.ready) {
            (_, false) => Style::new().fg(Color::Red),
            (true, true) => Style::new().fg(Color::Cyan).add_modifier(Modifier::BOLD),
            (false, true) => Style::new(),
        };
        let mark = if chosen { ">" } else { " " };
        let mut title = format!("{mark}{} {} {} pods ", node.name, node.address, node.pod_count);
        if let Some(why) = trouble(node) {
            title.push_str(&format!("- {why} "));
        }
        let block = Block::bordered().title(Span::styled(title, style)).border_style(style);
        let inner = block.inner(area);
        frame.render_widget(block, area);
        let rows = Layout::vertical([Constraint::Fill(1), Constraint::Fill(1)]).split(inner);
        let empty = Readings::new();
        let readings = self.readings.get(&node.name).unwrap_or(&empty);
        let now = node.usage.filter(|_| is_fresh(node));
        let cpu = now.map(|usage| usage.cpu_percent);
        let memory = now.map(|usage| usage.memory_percent);
        curve(frame, rows[0], "CPU", cpu, readings.iter().map(|r| r.0), Color::Green);
        curve(frame, rows[1], "MEM", memory, readings.iter().map(|r| r.1), Color::Blue);
    }

    fn draw_pods(&mut self, frame: &mut Frame, area: Rect) {
        let [head, body] =
            Layout::vertical([Constraint::Length(NODE_ROWS_OPEN), Constraint::Min(1)]).areas(area);
        let node = &self.nodes[self.chosen];
        self.draw_node(frame, head, node, true);
        let rows = node.pods.iter().map(|pod| {
            let (cpu, memory) = match &pod.usage {
                Some(usage) => (
                    format!("{}m", usage.cpu_millis),
                    format!("{:.1} MiB", usage.memory_bytes as f64 / f64::from(1 << 20)),
                ),
                None => ("-".to_owned(), "-".to_owned()),
            };
            let cells = [pod.namespace.clone(), pod.name.clone(), cpu, memory];
            Row::new(cells.map(Cell::from))
        });
        let widths = [
            Constraint::Fill(1),
            Constraint::Fill(2),
            Constraint::Length(9),
            Constraint::Length(12),
        ];
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let table = Table::new(rows, widths)
            .header(Row::new(["NAMESPACE", "POD", "CPU", "MEMORY"]).style(bold))
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        frame.render_stateful_widget(table, body, &mut self.pods);
    }
}

/// `CPU  75.2 ▁▂▃`: the newest reading at the right end.
fn curve(
    frame: &mut Frame,
    area: Rect,
    name: &str,
    now: Option<f32>,
    readings: impl DoubleEndedIterator<Item = f32> + ExactSizeIterator,
    colour: Color,
) {
    let [label, line] =
        Layout::horizontal([Constraint::Length(10), Constraint::Min(1)]).areas(area);
    let figure = now.map_or_else(|| "    -".to_owned(), |value| format!("{:5.1}", percent(value)));
    frame.render_widget(Paragraph::new(format!("{name} {figure}")), label);
    let width = usize::from(line.width);
    let skipped = readings.len().saturating_sub(width);
    let blank = width.saturating_sub(readings.len());
    let values = readings.skip(skipped).map(|value| value.round() as u64);
    let data: Vec<u64> = std::iter::repeat_n(0, blank).chain(values).collect();
    frame.render_widget(
        Sparkline::default().data(data).max(100).style(Style::new().fg(colour)),
        line,
    );
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use timonier_proto::v1::{HostUsage, PodSample, PodUsage};

    use super::*;

    fn screen() -> Screen {
        let node = |name: &str, cpu: f32| NodeSample {
            name: name.into(),
            address: "10.0.0.1".into(),
            ready: true,
            age_ms: 300,
            pod_count: 2,
            usage: Some(HostUsage { cpu_percent: cpu, memory_percent: 50.0, ..Default::default() }),
            pods: vec![
                PodSample { namespace: "default".into(), name: "idle".into(), usage: None },
                PodSample {
                    namespace: "default".into(),
                    name: "web-1".into(),
                    usage: Some(PodUsage {
                        cpu_millis: 250,
                        memory_bytes: 3 << 20,
                        ..Default::default()
                    }),
                },
            ],
        };
        let mut screen = Screen::default();
        for cpu in [0.0, 12.5, 25.0, 50.0, 100.0] {
            screen.take(MonitorFrame {
                nodes: vec![node("lab-2", cpu / 2.0), node("lab-1", cpu)],
                ..Default::default()
            });
        }
        screen
    }

    fn drawn(screen: &mut Screen, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let lines = buffer.content().chunks(usize::from(width));
        let text = lines.map(|line| line.iter().map(|cell| cell.symbol()).collect::<String>());
        text.map(|line| line.trim_end().to_owned() + "\n").collect()
    }

    fn press(screen: &mut Screen, code: KeyCode) -> bool {
        screen.press(KeyEvent::new(code, KeyModifiers::NONE))
    }

    #[test]
    fn nodes_have_curves() {
        expect![[r#"
            ┌>lab-1 10.0.0.1 2 pods ───────────────────┐
            │CPU 100.0                             ▁▂▄█│
            │MEM  50.0                            ▄▄▄▄▄│
            └──────────────────────────────────────────┘
            ┌ lab-2 10.0.0.1 2 pods ───────────────────┐
            │CPU  50.0                              ▁▂▄│
            │MEM  50.0                            ▄▄▄▄▄│
            └──────────────────────────────────────────┘
             up/down choose   Enter pods   Esc back   q
        "#]]
        .assert_eq(&drawn(&mut screen(), 44, 9));
    }

    #[test]
    fn a_node_opens_to_its_pods_and_closes() {
        let mut screen = screen();
        press(&mut screen, KeyCode::Down);
        press(&mut screen, KeyCode::Enter);
        expect![[r#"
            ┌>lab-2 10.0.0.1 2 pods ───────────────────────────────┐
            │CPU  50.0                                             │
            │                                                     ▄│
            │                                                  ▁▃▆█│
            │MEM  50.0                                             │
            │                                                 ▄▄▄▄▄│
            │                                                 █████│
            └──────────────────────────────────────────────────────┘
            NAMESPACE   POD                   CPU       MEMORY
            default     web-1                 250m      3.0 MiB
            default     idle                  -         -

             up/down choose   Enter pods   Esc back   q quit
        "#]]
        .assert_eq(&drawn(&mut screen, 56, 13));
        assert!(!press(&mut screen, KeyCode::Esc), "closes the node first");
        assert!(!screen.open);
        assert!(press(&mut screen, KeyCode::Esc));
    }

    #[test]
    fn any_size_is_drawn_and_a_gap_is_told() {
        let mut screen = screen();
        screen.gap = Some("the master ended the stream".into());
        assert!(drawn(&mut screen, 60, 9).contains("the master ended the stream; trying again"));
        press(&mut screen, KeyCode::Down);
        assert!(drawn(&mut screen, 44, 5).contains("lab-2"), "the chosen node is in sight");
        for open in [false, true] {
            screen.open = open;
            for (width, height) in [(1, 1), (5, 2), (20, 3), (300, 100)] {
                drawn(&mut screen, width, height);
            }
        }
    }

    #[test]
    fn a_node_that_goes_takes_its_open_view_along() {
        let mut screen = screen();
        press(&mut screen, KeyCode::Enter);
        screen.take(MonitorFrame::default());
        assert!(!screen.open);
        assert!(drawn(&mut screen, 30, 5).contains("no node to show"));
        assert!(!press(&mut screen, KeyCode::Enter) && !screen.open);
    }
}
