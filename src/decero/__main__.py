from decero.cli import main

main()
