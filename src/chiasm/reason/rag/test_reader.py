"""The document reader: text, tables, equations, pictures, pages and captions of real files made here."""

import csv

import numpy as np
import pytest
from PIL import Image

from chiasm.errors import BadItem
from chiasm.items import Item
from chiasm.reason.rag.reader import read_units, units_of, with_captions


def of(kind, units):
    return [unit for unit in units if unit.modality == kind]


MARKDOWN = """# Plants

Orla is run by Mira Voss.

| town | output |
|---|---|
| Orla | 417 |
| Brum | 388 |

Table 1: Output by town.

## Model

The output follows

$$y = a x^2 + b$$

with the usual letters, and it costs $$ and more $$ to buy.
"""


def test_markdown_has_text_table_and_equation(tmp_path):
    path = tmp_path / "a.md"
    path.write_text(MARKDOWN, encoding="utf-8")
    units = read_units(path)
    (table,) = of("table", units)
    assert table.text == "town | output\nOrla | 417\nBrum | 388"
    assert table.meta["caption"] == "Table 1: Output by town."
    assert table.meta["heading"] == "Plants"
    (equation,) = of("equation", units)
    assert equation.text == "y = a x^2 + b"
    words = " ".join(unit.text for unit in of("text", units))
    assert "Mira Voss" in words
    assert "$$ and more $$" in words
    assert "417" not in words
    assert len({unit.id for unit in units}) == len(units)


def test_a_table_over_several_chunks_keeps_its_header(tmp_path):
    rows = "\n".join(f"| town number {i} | {i} barrels of herring and {i + 1} of salt |" for i in range(60))
    (tmp_path / "a.md").write_text(f"# Trade\n\n| town | goods |\n|---|---|\n{rows}\n")
    tables = of("table", read_units(tmp_path / "a.md"))
    assert len(tables) > 2
    assert all(table.text.startswith("town | goods\n") for table in tables)
    assert all(table.text.count("town | goods") == 1 for table in tables)


def page(text):
    return Item("text", text, "/d/a.pdf", "page=2,chunk=1", text, "0" * 64, {"page": 2, "format": "pdf"})


def test_figures_in_columns_are_a_table_with_their_header():
    text = "The plants did well.\nPlant Q1 Q2 Q3\nOrla 417 388 402\nNew Brum 12 15.5 9\nKelm 7 - 3\nThey will do well again."
    units = units_of(page(text))
    (table,) = of("table", units)
    assert table.text.splitlines() == [
        "Plant | Q1 | Q2 | Q3",
        "Orla | 417 | 388 | 402",
        "New Brum | 12 | 15.5 | 9",
        "Kelm | 7 | - | 3",
    ]
    assert table.page == 2
    assert table.locator == "page 2"
    assert [unit.text for unit in of("text", units)] == ["The plants did well.", "They will do well again."]


def test_formulas_are_lines_of_their_own_only_where_code_is_rare():
    text = "The energy is\nE = m c² + ∑ p\nfor every body of this sort that we know."
    (equation,) = of("equation", units_of(page(text)))
    assert equation.text == "E = m c² + ∑ p"
    code = Item("text", "x = 3\ny = x + 1", "/d/a.md", "chunk=1", "x = 3\ny = x + 1", "0" * 64, {"format": "markdown"})
    assert [unit.modality for unit in units_of(code)] == ["text"]
    latex = units_of(page(r"So \begin{equation} a \le b \end{equation} holds, and \[ c \to d \] too."))
    assert [unit.text for unit in of("equation", latex)] == [r"a \le b", r"c \to d"]


def test_a_chunk_of_sentences_stays_as_it_is():
    item = page("There were 3 plants in 1931. Two of them are gone.")
    (unit,) = units_of(item)
    assert unit.id == item.id  # as in a store
    assert unit.text == item.text


def test_captions_belong_to_pictures_of_their_page():
    picture = Image.fromarray(np.zeros((80, 80, 3), np.uint8))
    items = [
        Item("text", t, "/d/a.pdf", f"page={n},chunk=1", t, "0" * 64, {"page": n})
        for n, t in ((1, "Intro."), (2, "See below.\nFigure 1: The lighthouse.\nFigure 2: The harbor."))
    ]
    items += [
        Item("image", picture, "/d/a.pdf", f"page={n},image={i}", "", "0" * 64, {"page": n})
        for n, i in ((1, 1), (2, 1), (2, 2), (2, 3))
    ]
    pictures = of("image", read_units(items))
    assert [unit.meta.get("caption") for unit in pictures] == [
        None,
        "Figure 1: The lighthouse.",
        "Figure 2: The harbor.",
        None,
    ]
    assert pictures[1].text == "Figure 1: The lighthouse."
    assert pictures[1].content is not None


def test_equations_of_overlapping_chunks_come_once():
    twice = [page("a\n$$x = 1$$\nb"), page("b\n$$x = 1$$\nc")]
    assert len(of("equation", with_captions([u for item in twice for u in units_of(item)]))) == 1


def test_ten_thousand_rows(tmp_path):
    path = tmp_path / "big.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["town", "output"])
        writer.writerows([f"town {i}", i] for i in range(10_000))
    units = read_units(path)
    assert {unit.modality for unit in units} == {"table"}
    assert all(unit.text.startswith("town | output\n") for unit in units)
    assert "town 9999 | 9999" in units[-1].text
    assert units[-1].meta["rows"].endswith("-10001")


def test_word_tables_and_equations(tmp_path):
    docx = pytest.importorskip("docx")
    document = docx.Document()
    document.add_heading("Costs", 1)
    document.add_paragraph("The costs fell.")
    table = document.add_table(2, 2)
    for cell, text in zip([c for row in table.rows for c in row.cells], ("year", "cost", "1931", "12"), strict=True):
        cell.text = text
    document.add_paragraph("E = m c")
    from docx.oxml import parse_xml

    space = "http://schemas.openxmlformats.org/officeDocument/2006/math"
    formula = "".join(f"<m:r><m:t>{piece}</m:t></m:r>" for piece in ("a", "=", "b+c"))
    document.add_paragraph("As an object:")._p.append(parse_xml(f'<m:oMath xmlns:m="{space}">{formula}</m:oMath>'))
    document.save(str(tmp_path / "a.docx"))
    units = read_units(tmp_path / "a.docx")
    assert of("table", units)[0].text == "year | cost\n1931 | 12"
    assert [unit.text for unit in of("equation", units)] == ["E = m c", "a=b+c"]
    assert of("text", units)[0].meta["heading"] == "Costs"


def test_a_document_without_anything_is_an_error(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(" \n\n")
    with pytest.raises(BadItem, match="neither text nor pictures"):
        read_units(path)
    with pytest.raises(BadItem):
        read_units(tmp_path / "missing.txt")


def test_a_picture_file_is_one_picture(tmp_path):
    Image.fromarray(np.zeros((90, 80, 3), np.uint8)).save(tmp_path / "a.png")
    (unit,) = read_units(tmp_path / "a.png")
    assert unit.modality == "image"
    assert unit.content.size == (80, 90)
