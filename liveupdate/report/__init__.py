# SPDX-License-Identifier: Apache-2.0
"""Reports: text, JSON, JUnit, KTAP, HTML, and the tables and plots of a matrix. Pure."""
