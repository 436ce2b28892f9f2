"""Demonstration data: four pre-training domains and three fine-tuning sets, built with ASE and labelled by xTB.

They exist so that the first run works everywhere within minutes. They are a demonstration: semi-empirical labels, few
structures, small cells at the Γ point. Nothing trained on them is of scientific use.

`generate.make_demo` computes them anew (needs tblite); `shipped.unpack_demo` writes the small set that comes with the
package.
"""
