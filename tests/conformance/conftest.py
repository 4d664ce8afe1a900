"""Register the marks of transformers' tests."""

MARKS = ["accelerate_tests", "torch_compile_test", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test"]


def pytest_configure(config):
    for name in MARKS:
        config.addinivalue_line("markers", f"{name}: of transformers")
